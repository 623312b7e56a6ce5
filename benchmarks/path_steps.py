"""The straight path of one assignment, counted: which functions, files, rooms and statements each step of the coordinator passes.

A profile hook watches a live coordinator while one agent claims, fetches, sends, and its delta is judged and applied:
`python -m benchmarks.path_steps [--budget]`. `--budget` gives the run an exposure budget and policy `auto`.
"""

import argparse
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors.torch import save
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.support.live import LiveCoordinator
from tests.support.models import tiny_bert
from tests.support.visits import Hand, settled, start_run

FACTS = ("coordinator/domain", "coordinator/db", "coordinator/errors.py", "shared/contract", "shared/files")
"""What a step reads and calls upon: rules, tables, messages, formats. The other files are the ones that it walks through."""
TRANSACTION = (
    "coordinator/db/base.py",
    "coordinator/db/typed.py",
    "coordinator/absence.py",
    "shared/contract/words.py",
    "shared/contract/digests.py",
)
"""What every transaction and every field of a message passes: not counted."""


@dataclass
class Step:
    """One walk from a root function to its return."""

    root: str
    stack: list[tuple[str, str]] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)
    crossings: int = 0
    statements: int = 0
    chain: list[str] = field(default_factory=list)
    """the deepest way through files"""
    twice: set[str] = field(default_factory=set)
    """rooms that were left and entered again on one way down"""

    def enter(self, place: tuple[str, str]) -> None:
        if self.stack and self.stack[-1][0] != place[0]:
            self.crossings += 1
        self.stack.append(place)
        self.functions.add(place)
        files = list(dict.fromkeys(path for path, _ in self.stack if not path.startswith(FACTS)))
        if len(files) > len(self.chain):
            self.chain = files
        rooms: list[str] = []
        for path, _ in self.stack:
            if not path.startswith(FACTS) and (room := path.rpartition("/")[0]) not in rooms[-1:]:
                rooms.append(room)
        self.twice |= {room for room in rooms if rooms.count(room) > 1}

    @property
    def files(self) -> list[str]:
        return sorted({path for path, _ in self.functions})

    @property
    def walked(self) -> list[str]:
        return [path for path in self.files if not path.startswith(FACTS)]

    @property
    def rooms(self) -> list[str]:
        return sorted({path.rpartition("/")[0] for path in self.walked})


class Watch:
    """Notes the steps of all threads that begin after it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._here = threading.local()
        threading.setprofile(self._hook)
        event.listen(Engine, "before_cursor_execute", self._count)

    def _count(self, *_: Any) -> None:
        if (step := getattr(self._here, "step", None)) is not None:
            step.statements += 1

    def _hook(self, frame: FrameType, what: str, _argument: Any) -> None:
        if what not in ("call", "return") or (path := _ours(frame)) is None:
            return
        place = (path, frame.f_code.co_qualname.partition(".<locals>.<")[0])
        step: Step | None = getattr(self._here, "step", None)
        if step is None:
            if what == "call" and (root := _root(place, frame)) is not None:
                self._here.step = step = Step(root)
                step.enter(place)
            return
        if what == "call":
            step.enter(place)
        elif step.stack[-1] == place:
            step.stack.pop()
            if not step.stack:
                self._here.step = None
                self.steps.append(step)

    def last(self, root: str, *functions: str) -> Step:
        """The newest step of this root in which one of these functions was called."""
        return next(s for s in reversed(self.steps) if s.root == root and {name for _, name in s.functions} & set(functions or (root,)))


def _ours(frame: FrameType) -> str | None:
    name = frame.f_code.co_filename.replace("/fedcybgd/", "/")
    if name.endswith(TRANSACTION):
        return None
    for package in ("coordinator", "shared"):
        if f"/{package}/" in name and "site-packages" not in name and "/tests/" not in name:
            return f"{package}/{name.partition(f'/{package}/')[2]}"
    return None


def _root(place: tuple[str, str], frame: FrameType) -> str | None:
    path, name = place
    if path == "coordinator/api/assignments.py" and "_arrive" not in name and not frame.f_code.co_flags & 0x80:
        return name
    if place in (("coordinator/services/outcomes.py", "complete"), ("coordinator/services/path/claim.py", "ask")):
        return name
    if path == "coordinator/engine/entries.py" and name == "run":
        return f"run {frame.f_locals['kind']}"
    return None


def walk(folder: Path, budget: bool) -> list[tuple[str, Step]]:
    """One visit by hand; the steps by their names."""
    watch = Watch()
    live = LiveCoordinator(folder / "home")
    more: dict[str, Any] = {"compression": {"policy": "auto"}, "exposure": {"max_exact_blocks": 4}} if budget else {}
    try:
        live.add_model("bert", tiny_bert(folder / "bert"))
        hand = Hand(live)
        run = start_run(live, "bert", [hand], **more)
        settled(live, run)
        assignment = hand.take(run)
        decided = next(s for s in reversed(watch.steps) if s.root == "ask" and s.statements > 10)
        hand.send(assignment, save(hand.delta(assignment)))
        hand.take(run)
        settled(live, run)
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
        live.stop()
    sys.setprofile(None)
    return [
        ("2 decide", decided), ("3 serve", watch.last("shard")), ("5 take", watch.last("delta")),
        ("6 measure", watch.last("run admit", "admit")), ("6 judge", watch.last("complete", "judged")),
        ("7 apply", watch.last("run apply", "apply")), ("8 close", watch.last("complete", "applied")),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", action="store_true")
    parser.add_argument("--files", action="store_true", help="name the files and functions of each step")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = walk(Path(folder), given.budget)
    print("| step | functions | files | walked through | rooms | deepest chain | crossings | SQL | rooms entered twice |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, s in steps:
        counts = (len(s.functions), len(s.files), len(s.walked), len(s.rooms), len(s.chain), s.crossings, s.statements)
        print(f"| {name} | {' | '.join(map(str, counts))} | {', '.join(sorted(s.twice)) or '–'} |")
    if given.files:
        for name, s in steps:
            print(f"\n{name}: " + " → ".join(s.chain))
            print("   " + ", ".join(sorted(f"{p.rpartition('/')[2]}:{n}" for p, n in s.functions)))


if __name__ == "__main__":
    main()
