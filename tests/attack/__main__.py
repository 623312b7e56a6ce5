"""`python -m tests.attack`: try every attack on a live coordinator and live agents, and say of each whether it held.

Ends with 1 where something is not held that docs/threat-model.md does not name.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.attack import by_agents, by_nobody, on_agents, on_models
from tests.attack.attack import ATTACKS, Verdict, tried
from tests.attack.scene import Scene

ROOMS = (on_agents, on_models, by_agents, by_nobody)


def chosen(only: list[str], quick: bool) -> list[str]:
    return [a.id for a in sorted(ATTACKS, key=lambda a: a.id) if (not only or a.id in only) and (a.quick or not quick)]


def go(ids: list[str]) -> list[Verdict]:
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        scene = Scene(Path(folder))
        try:
            for one in sorted((a for a in ATTACKS if a.id in ids), key=lambda a: a.id):
                verdicts.append(tried(one, scene))
                last = verdicts[-1]
                print(f"{last.id:12} {last.word:22} {last.title}\n{'':12} {last.evidence} ({last.seconds:g} s)", flush=True)
        finally:
            scene.close()
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="ids of attacks")
    parser.add_argument("--quick", action="store_true", help="those that are tried at every change")
    parser.add_argument("--json", type=Path, help="write the verdicts to this file, too")
    words = parser.parse_args()
    verdicts = go(chosen(words.only, words.quick))
    if words.json is not None:
        words.json.write_text(json.dumps([v.json() for v in verdicts], indent=2) + "\n")
    kept, said = sum(v.held for v in verdicts), sum(not v.held and v.named for v in verdicts)
    print(
        f"\n{len(verdicts)} attacks: {kept} held, {said} not held and named in docs/threat-model.md, {len(verdicts) - kept - said} not held"
    )
    return int(kept + said < len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
