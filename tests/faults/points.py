"""Kills a process once at each named point, and looks whether the run goes on, and to which bits."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcybgd.client.errors import ClientError
from tests.faults.fleet import Fleet
from tests.faults.judged import Outcome, ended, judge, undisturbed
from tests.faults.spec import spec

FLAVOUR = "full"
REACHED_WITHIN_S = 20.0
GOES_ON_WITHIN_S = 60.0


@dataclass
class Killed:
    """What came of the points that one fleet was given."""

    survived: list[str] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)
    """point → what was wrong afterwards"""
    not_reached: list[str] = field(default_factory=list)
    versions: int = 0


class Pointer:
    """Keeps a run going on a fleet, and kills at one point after another."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._values: dict[str, Any] = {}
        self._run_id, self._since = "", list[str]()
        self.killed = Killed()

    def all(self, points: Sequence[str]) -> Killed:
        for point in points:
            self._one(point)
        self._finish()
        return self.killed

    def walk(self) -> None:
        """Pass every point that there is, dying nowhere."""
        self._have_run()
        self._operate()
        for stop in (*(agent.stop for agent in self._fleet.agents), self._fleet.coordinator.stop):
            stop()
        self._finish()
        assert not self.killed.failed, self.killed.failed

    def _one(self, point: str) -> None:
        self._fleet.arm(point)
        began = time.monotonic()
        reached = self._reached(point)
        print(f"{time.monotonic() - began:5.1f} s {'' if reached else 'not reached: '}{point}", flush=True)
        if not reached:
            self.killed.not_reached.append(point)
            return
        self._since.append(point)
        if not self._goes_on():
            self._finish()

    def _reached(self, point: str) -> bool:
        """Whether a process has died there; what leads there is done by an operator, or by starting again."""
        role = point.split(" ", 1)[0]
        ways: list[Callable[[], None]] = [lambda: None]
        if role in ("web", "engine"):
            ways += [self._operate, self._fleet.coordinator.stop, self._operate]
        else:
            ways += [lambda: [agent.stop() for agent in self._fleet.agents], lambda: None]  # type: ignore[list-item, return-value]
        first = [self._operate, *ways] if "(import)" in point or "(export)" in point or "api." in point else ways
        for way in first:
            self._have_run()
            with contextlib.suppress(Exception):  # killed in the middle of it, as is meant
                way()
            until = time.monotonic() + REACHED_WITHIN_S / 2
            while time.monotonic() < until:
                if self._fleet.hit():
                    return True
                if not self._runs():
                    self._finish()
                    self._have_run()
                time.sleep(0.05)
        return not self._fleet.disarm()

    def _operate(self) -> None:
        """What touches every part of the coordinator that a run alone does not."""
        name = f"again-{time.monotonic_ns()}"
        client = self._fleet.coordinator.client
        for act in (
            lambda: client.models.begin(str(self._fleet.model), name), lambda: client.agents.token(), self._held_out,
            lambda: client.runs.export(self._run_id, self._fleet.folder / name, timeout_s=5),
            lambda: client.connection.post(f"/runs/{self._run_id}/pause"), lambda: client.connection.post(f"/runs/{self._run_id}/resume"),
        ):  # fmt: skip
            with contextlib.suppress(ClientError, OSError):  # the coordinator may die of it, as is meant
                act()

    def _held_out(self) -> None:
        assert self._fleet.held_out is not None
        self._fleet.coordinator.client.runs.upload_held_out(self._fleet.held_out[0])

    def _view(self) -> dict[str, Any]:
        with contextlib.suppress(ClientError):
            return self._fleet.view(self._run_id)
        return {}

    def _runs(self) -> bool:
        return self._view().get("state", "running") == "running"

    def _have_run(self) -> None:
        if not self._run_id:
            now = time.monotonic_ns()
            self._values = spec(FLAVOUR, f"points-{now}", now % 2**31, self._fleet.held_out)
            self._run_id = self._fleet.begin(self._values)

    def _goes_on(self) -> bool:
        """Whether the run has closed another round since; False too when it has ended."""
        before, until = None, time.monotonic() + GOES_ON_WITHIN_S
        while time.monotonic() < until:
            view = self._view()
            if view.get("state") == "paused":  # as `_operate` may have left it
                with contextlib.suppress(ClientError):
                    self._fleet.operator.post(f"/runs/{self._run_id}/resume")
            elif view and view["state"] != "running":
                return False
            if view:
                before = view["rounds_done"] if before is None else before
                if view["rounds_done"] > before:
                    return True
            time.sleep(0.1)
        return False

    def _finish(self) -> None:
        """Let the run end, and judge it: its bits stand for all points since the last one."""
        if not self._run_id:
            return
        outcome = Outcome(0, FLAVOUR, [])
        expected = undisturbed(self._fleet.model, self._fleet.partitions, self._values)
        judge(outcome, self._fleet, self._run_id, ended(self._fleet, self._run_id), expected, exact=True)
        self.killed.versions += outcome.versions
        if outcome.well:
            self.killed.survived += self._since
        else:
            wrong = [*outcome.lost, *outcome.doubled, *outcome.different, *outcome.wedged]
            self.killed.failed |= dict.fromkeys(self._since, wrong)
            print("\n    ".join(["WRONG after", *self._since, *wrong]), flush=True)
        self._run_id, self._since = "", []
