"""Runs under random faults, each drawn from a seed, on real processes; what they end with is judged to the bit.

python -m tests.faults.chaos --runs 200          seeds 0 to 199, two at a time
python -m tests.faults.chaos --seed 17 --runs 1  one of them again
python -m tests.faults.chaos --replicas 3        with several coordinators on one PostgreSQL
python -m tests.faults.chaos --storage s3        with blobs and uploads on a real S3 server, to which something happens too
python -m tests.faults.chaos --points all        instead: a process is killed once at each named point
"""

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults.fleet import Fleet
from tests.faults.judged import Outcome, disturbed
from tests.faults.plan import AGENTS, BLOBS, Plan, draw, draw_for_several, with_storage
from tests.faults.points import Killed, Pointer
from tests.faults.spec import held_out, model
from tests.faults.storage import Storage
from tests.support.postgres import PostgresServer, find_program

TOGETHER = 10
"""Runs that one fleet does at the most: then a fresh one is started."""
Result = dict[str, Any]


@contextmanager
def started(
    database_url: str | None = None, agents: int = AGENTS, replicas: int = 1, storage: Storage | None = None
) -> Iterator[Fleet]:  # fmt: skip
    """A fleet under a watch."""
    with tempfile.TemporaryDirectory(prefix="fedcybgd-faults-", ignore_cleanup_errors=True) as folder:
        fleet = Fleet(
            Path(folder) / "fleet", model(Path(folder) / "model"), agents, database_url=database_url, held_out=held_out(Path(folder)),
            replicas=replicas, storage=storage,
        )  # fmt: skip
        try:
            fleet.watch()
            yield fleet
        finally:
            fleet.stop()


def group(plans: Sequence[Plan], replicas: int = 1, in_storage: bool = False) -> list[Outcome]:
    """Some runs one after another on one fleet. A run that went wrong is the last of its fleet: the next ones get a fresh one."""
    outcomes: list[Outcome] = []
    server = PostgresServer() if plans[0].postgresql else None
    storage = Storage() if in_storage else None
    try:
        while left := plans[len(outcomes) :]:
            with ExitStack() as until_then:
                try:
                    fleet = until_then.enter_context(started(server.new_database() if server else None, replicas=replicas, storage=storage))
                except Exception:
                    outcomes.append(of_the_harness(left[0]))
                    say(outcomes[-1])
                    continue
                for plan in left:
                    outcomes.append(attempted(fleet, plan, server))
                    say(outcomes[-1])
                    if not outcomes[-1].well:
                        break
    finally:
        for one in (server, storage):
            if one is not None:
                one.stop()
    return outcomes


def attempted(fleet: Fleet, plan: Plan, server: PostgresServer | None) -> Outcome:
    try:
        return disturbed(fleet, plan, server)
    except Exception:
        return of_the_harness(plan)


def of_the_harness(plan: Plan) -> Outcome:
    """Nothing can be said of the run, but that what is being handled kept it from being tried."""
    wrong = ["the harness itself:", *traceback.format_exc().splitlines()]
    return Outcome(plan.seed, plan.flavour, [str(fault) for fault in plan.faults], wedged=wrong)


def say(outcome: Outcome) -> None:
    verdict = ("identical" if outcome.identical else "replays") if outcome.well else "WRONG"
    print(f"seed {outcome.seed:4} {outcome.flavour:9} {outcome.seconds:5.1f} s  {outcome.restarts} restarts  {verdict}", flush=True)
    if not outcome.well:
        lines = [*outcome.faults, *outcome.lost, *outcome.doubled, *outcome.different, *outcome.wedged]
        print("\n".join(f"      {line}" for line in lines), flush=True)


def all_points() -> list[str]:
    """The points that processes pass where nothing happens to them."""
    with started() as fleet:
        Pointer(fleet).walk()
        return sorted(fleet.points())


def batches(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Runs that one fleet can serve."""
    of_kind = [[plan for plan in plans if plan.postgresql is kind] for kind in (True, False)]
    return [kind[at : at + TOGETHER] for kind in of_kind for at in range(0, len(kind), TOGETHER)]


def random_faults(pool: Executor, seeds: Sequence[int], replicas: int = 1, in_storage: bool = False) -> Iterator[Result]:
    plans = [draw(seed) if replicas == 1 else draw_for_several(seed) for seed in seeds]
    plans = [with_storage(plan) if in_storage else plan for plan in plans]
    if find_program("initdb") is None:
        print("PostgreSQL's initdb was not found: its runs are left out", flush=True)
        plans = [plan for plan in plans if not plan.postgresql]
    outcomes: list[Outcome] = []
    for done in as_completed([pool.submit(group, batch, replicas, in_storage) for batch in batches(plans)]):
        outcomes = sorted([*outcomes, *done.result()], key=lambda o: o.seed)
        told = summary(outcomes)
        print("\n" + table(outcomes), flush=True)
        yield {"wrong": sum(told[name] for name in WRONG), "summary": told, "outcomes": [asdict(outcome) for outcome in outcomes]}


def at_points(pool: Executor, wanted: str, seed: int) -> Iterator[Result]:
    points = pool.submit(all_points).result()
    points = points if wanted == "all" else [point for point in points if wanted in point]
    print(f"{len(points)} points", flush=True)
    random.Random(seed).shuffle(points)  # so that no agent dies again and again
    parts: list[Killed] = []
    for done in as_completed([pool.submit(_killed, points[at : at + TOGETHER]) for at in range(0, len(points), TOGETHER)]):
        parts.append(done.result())
        survived, not_reached = ([p for part in parts for p in getattr(part, name)] for name in ("survived", "not_reached"))
        failed = {point: why for part in parts for point, why in part.failed.items()}
        print(f"of {len(points)} points: {len(survived)} survived, {len(failed)} not, {len(not_reached)} not reached again", flush=True)
        yield {
            "wrong": len(failed), "points": len(points), "survived": sorted(survived), "failed": failed, "not_reached": sorted(not_reached),
            "versions": sum(part.versions for part in parts),
        }  # fmt: skip


def _killed(points: Sequence[str]) -> Killed:
    with started() as fleet:
        return Pointer(fleet).all(points)


WRONG = ("lost", "doubled", "different", "wedged")


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    restarted = [seconds for outcome in outcomes for seconds in outcome.restarted_in]
    return {
        "runs": len(outcomes), "faults": sum(len(o.faults) for o in outcomes), "restarts": sum(o.restarts for o in outcomes),
        "identical": sum(o.identical for o in outcomes), "versions": sum(o.versions for o in outcomes),
        **{name: sum(len(getattr(o, name)) > 0 for o in outcomes) for name in WRONG},
        "coordinator_answers_after_s": round(median(restarted), 2) if restarted else None,
        "kinds": dict(Counter(kind_of(fault) for o in outcomes for fault in o.faults)),
    }  # fmt: skip


def kind_of(fault: str) -> str:
    """`kill web` of `round 2.1: coordinator: kill web`."""
    return " ".join(word for word in fault.split(": ", 2)[2].split() if word.replace("_", "").isalpha() and word not in ("s", *BLOBS))


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [f"{'runs of':10} {'runs':>5} {'faults':>7} {'restarts':>9} {'identical':>10} " + " ".join(f"{name:>9}" for name in WRONG)]
    for flavour in [*sorted({o.flavour for o in outcomes}), "all"]:
        told = summary([o for o in outcomes if flavour in (o.flavour, "all")])
        numbers = " ".join(f"{told[name]:>9}" for name in WRONG)
        lines.append(f"{flavour:10} {told['runs']:>5} {told['faults']:>7} {told['restarts']:>9} {told['identical']:>10} {numbers}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next ones follow")
    parser.add_argument("--points", default="", help="`all`, or a part of the names of the points")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1, help="coordinators on one PostgreSQL database, behind a balancer")
    parser.add_argument("--storage", choices=["s3"], help="where blobs and uploads lie; by default in a directory")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    began, wrong = time.monotonic(), 0
    with ProcessPoolExecutor(given.at_once, multiprocessing.get_context("spawn")) as pool:
        seeds = range(given.seed, given.seed + given.runs)
        results = (
            at_points(pool, given.points, given.seed)
            if given.points
            else random_faults(pool, seeds, given.replicas, given.storage is not None)
        )
        for result in results:
            result |= {"seconds": round(time.monotonic() - began, 1), "commit": commit()}
            wrong = result["wrong"]
            if given.json:
                given.json.write_text(json.dumps(result, indent=1))
    print(f"{time.monotonic() - began:.0f} s at {commit()}")
    return int(wrong > 0)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "no commit"


if __name__ == "__main__":
    sys.exit(main())
