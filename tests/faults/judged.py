"""One run under faults, and what is to be said of it."""

import contextlib
import gc
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import reference
from fedcybgd.client.errors import ClientError
from tests.faults import chain
from tests.faults.fleet import COORDINATOR, Fleet
from tests.faults.happening import Happening
from tests.faults.plan import Fault, Plan
from tests.faults.spec import spec
from tests.support.postgres import PostgresServer

WEDGED_AFTER_S = 600.0
"""Seconds after the last fault, and after each round, within which a run must have closed another, also on a machine with much other work."""
EVENTS = 15
A_ROUND_S = 3.0
"""A fault that is meant for a round comes without it, where the run has not got there in so many seconds a round."""
Digests = dict[str, str]


@dataclass
class Outcome:
    """What came of one run; `lost` to `wedged` say what is wrong, and are empty."""

    seed: int
    flavour: str
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    identical: bool = False
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    wedged: list[str] = field(default_factory=list)
    versions: int = 0
    """that were computed again"""
    restarts: int = 0
    restarted_in: list[float] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.wedged)


def undisturbed(model: Path, partitions: Sequence[Path], values: dict[str, Any]) -> Digests:
    """What a run ends with where nothing happens to it: computed here, in one bare process. That of whole systems is the same (tests/e2e/test_same_weights.py)."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each visit looks through all that torch has made
    with tempfile.TemporaryDirectory(prefix="fedcybgd-undisturbed-") as folder:
        alone = reference.begin(Path(folder), model, values)
        reference.run(alone, partitions, Path(folder) / "scratch")
        return alone.digests()


def disturbed(fleet: Fleet, plan: Plan, postgres: PostgresServer | None = None) -> Outcome:
    """A run under the faults of a plan. Its seed is the plan's, so that no delta of it was ever seen before."""
    began, outcome = time.monotonic(), Outcome(plan.seed, plan.flavour)
    restarts, restarted = sum(fleet.restarts.values()), len(fleet.restarted_in)
    values = spec(plan.flavour, f"{plan.flavour}-{plan.seed}-{time.monotonic_ns()}", plan.seed, fleet.held_out)
    run_id = fleet.begin(values)
    troubles = Troubles(Happening(fleet, run_id, plan.seed, postgres), plan)
    view = ended(fleet, run_id, troubles)
    outcome.faults = troubles.happened
    if troubles.wrong:
        outcome.wedged += [*(f"the harness itself: {text}" for text in troubles.wrong), *fleet.last_words()]
    if fleet.disarm():
        outcome.wedged.append("the harness itself: nobody came to the point at which one was to die")
    troubles.happening.put_back()  # what nobody has had to read since is spoilt still, by the harness alone
    judge(outcome, fleet, run_id, view, undisturbed(fleet.model, fleet.partitions, values), plan.exact)
    outcome.restarts, outcome.restarted_in = sum(fleet.restarts.values()) - restarts, fleet.restarted_in[restarted:]
    outcome.seconds = time.monotonic() - began
    for proxy in fleet.all_proxies():
        proxy.clear()
    for fault in plan.faults:
        if fault.kind == "replica":  # started again it has its key at once: the next run is not to wait for it
            fleet.process(fault.target).kill()
    return outcome


def judge(outcome: Outcome, fleet: Fleet, run_id: str, view: dict[str, Any], expected: Digests, exact: bool) -> None:
    """Say what is wrong with a run that has ended; `exact` where its bits must be those that are expected."""
    if view["state"] != "completed":
        progress = f"{view['rounds_done']} of {view['rounds_total']} rounds"
        outcome.wedged += [f"{view['state']}: {view['reason']} ({progress})", *told(view), *fleet.last_words()]
    database = fleet.database_url or str(fleet.folder / COORDINATOR / "coordinator.db")
    found = chain.check(chain.opened(database), fleet.blobs.read, run_id)
    outcome.lost += found.lost if view["state"] == "completed" else []  # else they may still come
    outcome.doubled, outcome.different, outcome.versions = found.doubled, found.different, found.versions
    digests = digests_of(view)
    outcome.identical = digests == expected
    if exact and view["state"] == "completed" and not outcome.identical:
        names = [name for name in digests if digests[name] != expected.get(name)]
        outcome.different.append(f"not the bits of the undisturbed run: {', '.join(names)}")
        outcome.different += [*visits(fleet, run_id), *told(view), *fleet.last_words()]


class Troubles:
    """The faults of a plan, each in a thread of its own, which waits until the run is as far as the plan says."""

    def __init__(self, happening: Happening, plan: Plan) -> None:
        self.happening = happening
        self.rounds, self.over = 0, False
        self.happened: list[str] = []
        self.wrong: list[str] = []
        """the faults that could not be made, which is a mistake of the harness"""
        self._began = time.monotonic()
        self._threads = [threading.Thread(target=self._one, args=(fault,), daemon=True) for fault in plan.faults]
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _one(self, fault: Fault) -> None:
        until = self._began + A_ROUND_S * fault.at
        while self.rounds < int(fault.at) and not self.over and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(fault.at % 1 * A_ROUND_S / 3)
        if self.over:
            return
        self.happened.append(str(fault))
        try:
            self.happening.do(fault)
        except Exception as error:
            self.wrong.append(f"{fault}: {type(error).__name__}: {error}")


def ended(fleet: Fleet, run_id: str, troubles: Troubles | None = None) -> dict[str, Any]:
    """The run, when it has ended, or will not. What nobody can make again is put back, as its reason asks, and the run resumed."""
    until: float | None = None
    closed = 0
    view: dict[str, Any] = {
        "state": "unknown",
        "reason": "the coordinator does not answer",
        "rounds_done": 0,
        "rounds_total": 0,
        "blocks": [],
    }
    while view["state"] in ("running", "unknown") or (troubles is not None and troubles.alive()):
        if until is None and (troubles is None or not troubles.alive()):
            until = time.monotonic() + WEDGED_AFTER_S
        if until is not None and time.monotonic() > until:
            break
        with contextlib.suppress(ClientError):
            view = fleet.view(run_id)
        if until is not None and view["rounds_done"] > closed:  # however slow the machine is
            until = time.monotonic() + WEDGED_AFTER_S
        closed = view["rounds_done"]
        if troubles is not None:
            troubles.rounds, troubles.over = view["rounds_done"], view["state"] not in ("running", "unknown")
            if view["state"] == "paused" and troubles.happening.taken:
                troubles.happening.put_back()
                fleet.insist(lambda: fleet.operator.post(f"/runs/{run_id}/resume"), lambda: fleet.view(run_id)["state"] != "paused")
                view["state"], troubles.over = "running", False
        time.sleep(0.1)
    return view


def visits(fleet: Fleet, run_id: str) -> list[str]:
    """Who did what, for whoever reads why the weights are others."""
    found = fleet.operator.every(f"/runs/{run_id}/assignments")
    return [f"round {a['round']}: {a['block']} meant for {a['meant_for']}, by {a['agent']} at attempt {a['attempt']}" for a in found]


def told(view: dict[str, Any]) -> list[str]:
    """What happened, for whoever reads why a run went wrong."""
    return [f"{e['at']} {e['level']} {e['code']}: {e['message']}" for e in view.get("events", ())[:EVENTS]]


def digests_of(view: dict[str, Any]) -> Digests:
    return {b["name"]: b["digest"] for b in view["blocks"]}
