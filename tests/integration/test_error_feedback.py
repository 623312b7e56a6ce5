"""Error feedback when an agent is killed: at every step of a visit, and the model comes out the same to the bit."""

import contextlib
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.shared.contract.assignments import AddedDelta
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, run_file, settled, start_run

ROUNDS = 6
CALLS = ("fsync", "replace", "rename", "unlink", "utime", "mkdir")
HTTP = ("shard", "upload_offset", "upload", "submit")
FEEDBACK: Any = {"delta": {"codec": "int4", "error_feedback": True}, "train": {"learning_rate": 1e-3}}


class Killed(BaseException):
    """As SIGKILL: whoever cleans up on the way out finds that nothing works any more."""


class Reaper:
    """Kills this thread's agent at every step that nobody was killed at yet. Steps are the calls that change a disk or cross the wire: before
    and behind each, by the lines that make it.
    """

    def __init__(self) -> None:
        self.killed_at: set[tuple[str, str]] = set()
        self.at_work = False
        self._thread = threading.get_ident()
        self._dead = False

    @contextmanager
    def over(self, agent: LightAgent, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            self._dead = False
            for name in CALLS:
                patch.setattr(os, name, self._step(getattr(os, name)))
            for name in HTTP:
                patch.setattr(agent.client, name, self._step(getattr(agent.client, name)))
            yield

    def _step(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            if threading.get_ident() != self._thread:
                return call(*args, **more)
            label = f"{_place()} {getattr(call, '__name__', call)}"
            self._reach((label, "before"))
            result = call(*args, **more)
            self._reach((label, "behind"))
            return result

        return step

    def _reach(self, at: tuple[str, str]) -> None:
        if self._dead or (self.at_work and at not in self.killed_at):
            self._dead = True
            self.killed_at.add(at)
            raise Killed


def _place() -> str:
    """The innermost lines of ours: file and function."""
    ours = [f for f in traceback.extract_stack() if "/agent/" in f.filename or "/shared/" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-2:]))


def blocks(live: LiveCoordinator, run: str) -> dict[str, str]:
    return {block["name"]: block["digest"] for block in live.operator.get(f"/runs/{run}")["blocks"]}


def started(live: LiveCoordinator, model: str, name: str, rounds: int = ROUNDS) -> str:
    spec = run_file(model, "all", schedule={"cycles": rounds // 2}, **FEEDBACK) | {"agents": [name]}
    return str(live.create_run(spec, start=True)["name"])


def test_killed_at_every_step_the_model_is_the_same_to_the_bit(
    live: LiveCoordinator, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    reaper = Reaper()
    for reaper.at_work in (True, False):  # first the one: what the other sends is there then
        agent = LightAgent(live, tmp_path / str(reaper.at_work))
        run = started(live, model, agent.name)
        while live.state_of(run) == "running":
            if (assignment := agent.claim(run)) is None:
                continue
            with contextlib.suppress(Killed), reaper.over(agent, monkeypatch):
                agent.visit(assignment)
            agent.start()
        ended.append(blocks(live, run))
    calls = {place.rpartition(" ")[2] for place, _ in reaper.killed_at}
    assert calls >= {"shard", "upload", "submit", "fsync", "replace", "unlink"}
    assert len(reaper.killed_at) > 50
    assert ended[0] == ended[1]


def test_named_is_what_was_added_and_never_what_was_rejected(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    delta = {"delta": {"codec": "float32", "error_feedback": True}}
    run = start_run(live, model, [hand, other], schedule={"cycles": 3, "agents": "first_come"}, **delta)

    def added(who: Hand, bad: bool = False) -> tuple[list[AddedDelta], dict[str, AddedDelta]]:
        """What the next assignment names, and what is to be named from now on where its delta is added."""
        got = who.take(run)
        receipt = who.deliver(got, who.delta(got, float("nan")) if bad else None)
        settled(live, run)
        made = {b: AddedDelta(block=b, assignment_id=got.assignment_id, digest=receipt.digest) for b in got.train.trained}
        return got.carried, made

    carried, first = added(hand)
    assert carried == []
    carried, second = added(hand)
    assert carried == [first["head"]], "another block of layers"
    carried, _ = added(other, bad=True)
    assert carried == [], "what others were added is not its own"
    carried, third = added(hand)
    assert {delta.block: delta for delta in carried} == {"head": second["head"]} | {
        b: d for b, d in first.items() if b in third and b != "head"
    }
    carried, fourth = added(other)
    assert carried == [], "its delta was rejected"
    assert added(other)[0] == [fourth["head"]]
