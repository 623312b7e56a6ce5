"""A rolling update: coordinators of an earlier commit and of this checkout serve one PostgreSQL at once, while runs go on, to the same bits.

python -m tests.faults.rolling --from COMMIT

For each flavour of run: two coordinators and two agents of that commit; after the first round one coordinator is stopped and this checkout is
started in its place, after the next one an agent, then the other coordinator, then the other agent, as docs/versions.md says to. What the run
ends with is judged as after any faults: every version made again, nothing twice, the bits of an undisturbed run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedcybgd import Coordinator
from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import open_engine
from tests.faults.chaos import say
from tests.faults.fleet import Fleet
from tests.faults.judged import Outcome, ended, judge, undisturbed
from tests.faults.spec import held_out, model, spec
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for

HERE = Path(__file__).parents[2]
CYCLES = {"strict": 6, "full": 6, "corrected": 6, "whole": 15, "adapters": 15}
"""By flavour: rounds enough for each part of the update"""
ROUND_WITHIN_S = 240.0


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit of this repository."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", HERE, "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def updated(fleet: Fleet, name: str) -> None:
    """Stop a process as a service manager does, and start this checkout in its place."""
    process = fleet.process(name)
    with fleet.kept_down(name):
        process.stop()
        fleet.install(name, HERE)
        process.start() if isinstance(process, Coordinator) else process.start(wait=False)


def rolled(url: str, program: Path, flavour: str, seed: int) -> Outcome:
    """One run during which everything is updated."""
    outcome, began = Outcome(seed, flavour), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedcybgd-rolling-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        fleet = Fleet(folder / "fleet", model(folder / "model"), 2, url, held_out(folder), replicas=2, program=program)
        try:
            fleet.watch()
            values = spec(flavour, f"rolling-{flavour}", seed, fleet.held_out)
            values["schedule"]["cycles"] = CYCLES[flavour]
            run_id, rounds = fleet.begin(values), 0
            for name in ("coordinator", "agent-0", "coordinator-1", "agent-1"):
                wait_for(lambda: has_closed(fleet, run_id, rounds + 1), ROUND_WITHIN_S)  # noqa: B023 - asked here alone
                updated(fleet, name)
                rounds = int(fleet.view(run_id)["rounds_done"])
                outcome.faults.append(f"{name} is updated by round {rounds + 1}, schema {schema(url)}")
            view = ended(fleet, run_id)
            judge(outcome, fleet, run_id, view, undisturbed(fleet.model, fleet.partitions, values), exact=True)
        finally:
            fleet.stop()
    outcome.seconds = time.monotonic() - began
    return outcome


def schema(url: str) -> str:
    engine = open_engine(url)
    try:
        return str(migrate.current(engine))
    finally:
        engine.dispose()


def has_closed(fleet: Fleet, run_id: str, rounds: int) -> bool:
    """Or has stopped, which is judged."""
    view = fleet.view(run_id)
    return int(view["rounds_done"]) >= rounds or view["state"] != "running"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="commit", required=True, help="commit that everything runs at first")
    parser.add_argument("--flavour", choices=CYCLES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    server, outcomes = PostgresServer(), []
    try:
        with tempfile.TemporaryDirectory(prefix="fedcybgd-earlier-") as folder:
            program = checkout(options.commit, Path(folder) / "program")
            for flavour in options.flavour or CYCLES:
                outcomes.append(rolled(server.new_database(), program, flavour, options.seed))
                say(outcomes[-1])
                print("\n".join(f"      {line}" for line in outcomes[-1].faults), flush=True)
    finally:
        server.stop()
    sys.exit(any(not outcome.well for outcome in outcomes))


if __name__ == "__main__":
    main()
