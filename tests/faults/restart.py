"""How long it takes from the SIGKILL of a coordinator until its agents work again, while a run goes on.

    python -m tests.faults.restart --times 12

A service manager starts it again after 0.2 s, as here. Agents work again when each has a request open or answered at the new coordinator,
and one of them an answer.
"""

import argparse
import sys
import time
from statistics import median

from tests.faults.chaos import commit, started
from tests.faults.fleet import Fleet
from tests.faults.spec import spec
from tests.support.processes import wait_for

BETWEEN_S = 3.0
LONGEST_S = 120.0


def once(fleet: Fleet) -> tuple[float, float]:
    """Seconds until the coordinator answers, and until the agents work again."""
    killed = time.monotonic()
    fleet.coordinator.kill()
    wait_for(lambda: fleet.answers_since > killed, LONGEST_S, 0.01)

    def back() -> bool:
        asked, answered = (min(p.asked_at for p in fleet.proxies), max(p.answered_at for p in fleet.proxies))
        return min(asked, answered) > killed

    wait_for(back, LONGEST_S, 0.01)
    return fleet.answers_since - killed, time.monotonic() - killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=12)
    given = parser.parse_args()
    with started() as fleet:
        values = spec("plain", "restarted", 0)
        fleet.begin({**values, "schedule": {**values["schedule"], "cycles": 1000}})
        found = []
        for _ in range(given.times):
            time.sleep(BETWEEN_S)
            found.append(once(fleet))
            print(f"answers after {found[-1][0]:.2f} s, agents work again after {found[-1][1]:.2f} s", flush=True)
    answers, again = (sorted(part) for part in zip(*found, strict=True))
    print(
        f"{len(found)} times at {commit()}: answers after {median(answers):.2f} s, agents work again after {median(again):.2f} s (median; longest {again[-1]:.2f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
