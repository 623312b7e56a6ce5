"""A heartbeat touches its own visit only, however late its answer comes."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import assignment_run, heartbeat
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import LeaseGone
from fedcybgd.agent.messages import Command, TrainRequest
from fedcybgd.agent.trainer import Orders
from fedcybgd.shared.contract.assignments import DeltaReceipt
from fedcybgd.shared.contract.training import TrainMetrics
from tests.support.hostile import Answer, Asked, serving
from tests.unit.test_residuals import METRICS, Agent, asg, assignment
from tests.unit.test_trainer_process import REQUEST

GONE = {"code": "lease_lost", "message": "you do not hold this assignment any more", "detail": {}}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "FIRST_S", 0.01)


class SlowTrainer:
    """Trains until it is let go or told to stop; a stop for another visit is not for it."""

    def __init__(self, go: threading.Event) -> None:
        self.go, self.visit, self.stops = go, "", []  # type: ignore[var-annotated]
        self.stopped = threading.Event()

    def train(self, request: TrainRequest, report: Any, lost: Any) -> TrainMetrics:
        self.visit = request.visit
        Path(request.delta_path).write_bytes(b"delta of " + request.assignment_id.encode())
        while not self.go.wait(0.01):
            if self.stopped.is_set():
                raise LeaseGone("stopped")
        return METRICS

    def stop(self, visit: str) -> None:
        self.stops.append(visit)
        if visit == self.visit:
            self.stopped.set()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def visiting(agent: Agent, url: str, number: int, trainer: SlowTrainer) -> threading.Thread:
    """Begin a visit in a thread; only its heartbeat goes over the wire."""
    client = Client(url, "fca_x")
    client.upload_offset, client.upload, client.submit = (  # type: ignore[method-assign]
        agent.coordinator.upload_offset, agent.coordinator.upload, agent.coordinator.submit,  # type: ignore[assignment]
    )  # fmt: skip
    tools = assignment_run.Tools(client, agent.tools.cache, agent.outbox, trainer, agent.tools.data, agent.residuals)  # type: ignore[arg-type]
    work = assignment(number, feedback=False)
    for ref in work.manifest.blocks:
        agent.tools.cache.path(ref.digest).write_text(f"{ref.block}{number}")

    def visit() -> None:
        try:
            outcomes[number] = assignment_run.run_assignment(tools, work, lambda _: None)
        except LeaseGone as error:
            outcomes[number] = error

    thread = threading.Thread(target=visit, daemon=True)
    thread.start()
    return thread


outcomes: dict[int, DeltaReceipt | LeaseGone] = {}


def test_a_late_answer_does_not_stop_the_next_visit(tmp_path: Path) -> None:
    late, asked_first = threading.Event(), threading.Event()
    outcomes.clear()

    def answer(asked: Asked) -> Answer:
        if asg(1) in asked.path:
            asked_first.set()
            late.wait(20)
            return Answer.json(GONE, 409)
        return Answer.json({"lease_seconds": 60, "go_on": True})

    agent = Agent(tmp_path)
    go_first, go_second = threading.Event(), threading.Event()
    with serving(answer) as server:
        first, second = SlowTrainer(go_first), SlowTrainer(go_second)
        one = visiting(agent, server.url, 1, first)
        assert asked_first.wait(10)
        go_first.set()
        began = time.monotonic()
        one.join(10)
        assert time.monotonic() - began < 3, "an answer that hangs does not hold up the next visit"
        [late_one] = [t for t in threading.enumerate() if t.name == "heartbeat"]
        two = visiting(agent, server.url, 2, second)
        until(lambda: second.visit)
        late.set()
        late_one.join(10)
        assert not late_one.is_alive()
        go_second.set()
        two.join(10)
    assert isinstance(outcomes[1], DeltaReceipt)
    assert isinstance(outcomes[2], DeltaReceipt)
    assert first.stops == second.stops == []


def test_an_answer_in_time_stops_its_own_visit(tmp_path: Path) -> None:
    outcomes.clear()
    with serving(lambda asked: Answer.json(GONE, 409)) as server:
        trainer = SlowTrainer(threading.Event())
        visiting(Agent(tmp_path), server.url, 3, trainer).join(10)
    assert isinstance(outcomes[3], LeaseGone)
    assert trainer.stops == [f"{asg(3)}/1"]


def test_the_training_process_stops_the_visit_that_is_named() -> None:
    first, second = (REQUEST.model_copy(update={"visit": visit}) for visit in ("asg/1", "asg/2"))
    orders = Orders()
    orders.take(Command(op="train", request=first))
    orders.take(Command(op="stop", visit="asg/1"))
    orders.take(Command(op="train", request=second))
    assert orders.requests.get_nowait() == first
    assert orders.unwanted(first)
    assert not orders.unwanted(second)
    orders.take(Command(op="stop", visit="asg/1"))
    assert not orders.unwanted(second), "a stop that comes late is for the visit it names"
    orders.take(Command(op="stop"))
    assert orders.unwanted(second), "the daemon ends"
