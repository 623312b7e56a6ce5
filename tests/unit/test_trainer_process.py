"""A visit that nobody wants any more is not begun."""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from fedcybgd.agent import trainer_process, watch
from fedcybgd.agent.errors import LeaseGone, StopRequested, VisitFailed
from fedcybgd.agent.messages import Bounds, DataSource, TrainingOptions, TrainRequest
from fedcybgd.agent.settings import Config, Home
from fedcybgd.agent.trainer_process import TrainerProcess
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import ParameterGroup, TrainMetrics, TrainSettings

METRICS = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1)
SETTINGS = TrainSettings(task="causal-lm", groups=[ParameterGroup(blocks=["norm"], learning_rate=1.0)], batch_size=1, max_length=2, seed=0)
REQUEST = TrainRequest(
    assignment_id="asg_1", files={}, model_key="run_1", shards=[], train=SETTINGS, data=DataSource(path="rows.jsonl"), delta_path="delta"
)


HALF_A_SECOND = Bounds(steps=1, seconds=0.5, rows=1, never=[])


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrainerProcess:
    def begun(_self: TrainerProcess) -> None:
        pytest.fail("the training process was asked to train")

    monkeypatch.setattr(TrainerProcess, "start", begun)
    return TrainerProcess(Config.model_validate({"coordinator": "http://localhost", "data": {"path": "rows.jsonl"}}), Home(tmp_path))


def test_a_stop_that_came_while_shards_were_fetched_is_not_forgotten(trainer: TrainerProcess) -> None:
    trainer.end()
    with pytest.raises(StopRequested):
        trainer.train(REQUEST, lambda _: None, threading.Event())


def test_a_lease_that_was_lost_while_shards_were_fetched_is_not_trained_for(trainer: TrainerProcess) -> None:
    lost = threading.Event()
    lost.set()
    trainer.stop()
    with pytest.raises(LeaseGone):
        trainer.train(REQUEST, lambda _: None, lost)


def test_the_settings_of_training_reach_the_process(tmp_path: Path) -> None:
    values = {
        "coordinator": "http://localhost",
        "data": {"path": "rows.jsonl"},
        "limits": {"memory_gb": 2, "gpu_memory_gb": 3},
        "training": {"prefix_cache": "disk"},
    }
    *_, limit, card, options = TrainerProcess(Config.model_validate(values), Home(tmp_path))._command
    assert (int(limit), int(card)) == (2_000_000_000, 3_000_000_000)
    assert TrainingOptions.model_validate_json(options) == TrainingOptions(prefix_cache="disk")


class Child(TrainerProcess):
    """A training process that does what a script says, line by line as the real one does."""

    def __init__(self, script: str, stall_s: float = 10, memory_gb: float | None = None) -> None:
        limits = {"stall_s": stall_s, "memory_gb": memory_gb}
        super().__init__(
            Config.model_validate({"coordinator": "http://localhost", "data": {"path": "rows.jsonl"}, "limits": limits}),
            Home(Path(tempfile.mkdtemp(prefix="fedagent-"))),
        )
        self._command = [sys.executable, "-c", "import json, sys, time\n" + script]


SAY = "def say(event, **more): print(json.dumps({'event': event, **more}), flush=True)\n"
READ = "say('ready')\norder = json.loads(sys.stdin.readline())\nvisit = order['request']['visit']\n"
DONE = "say('done', visit=visit, metrics=" + repr(json.loads(METRICS.model_dump_json())) + ")\n"


def visited(child: TrainerProcess, lost: threading.Event | None = None) -> object:
    try:
        return child.train(REQUEST.model_copy(update={"visit": "asg/1"}), lambda _: None, lost or threading.Event())
    finally:
        child.close()


def test_events_of_another_visit_are_not_for_this_one() -> None:
    script = SAY + READ + "say('stopped', visit='asg/0')\nsay('failed', visit='asg/0', reason='other')\n" + DONE + "sys.stdin.read()"
    assert visited(Child(script)) == METRICS


def test_a_process_that_stands_still_is_ended_and_said_to_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    child = Child(SAY + READ + "while True: say('alive'); time.sleep(0.05)")
    child._stall_s = 0.5
    with pytest.raises(VisitFailed, match="no step ended for") as failed:
        visited(child)
    assert failed.value.reason == "stalled"
    assert child._process is not None
    assert child._process.poll() is not None


def test_only_the_first_visit_of_a_process_waits_for_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    child = Child(SAY + "time.sleep(0.6)\n" + READ + DONE + "while True: say('alive'); time.sleep(0.05)")
    child._stall_s = 0.3
    try:
        assert child.train(REQUEST.model_copy(update={"visit": "asg/1"}), lambda _: None, threading.Event()) == METRICS
        with pytest.raises(VisitFailed, match="no step ended for"):
            child.train(REQUEST.model_copy(update={"visit": "asg/2"}), lambda _: None, threading.Event())
    finally:
        child.close()


def test_a_stopped_process_is_noticed_though_it_may_stand_still_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(watch, "SILENT_S", 0.5)
    with pytest.raises(VisitFailed, match="no step ended") as failed:
        visited(Child(SAY + READ + "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", stall_s=3600))
    assert failed.value.reason == "stalled"


def test_a_process_that_hangs_is_given_up_before_the_coordinator_takes_its_visit_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    child = Child(SAY + READ + "while True: say('alive', cpu_s=1.0); time.sleep(0.05)", stall_s=3600)
    began = time.monotonic()
    try:
        with pytest.raises(VisitFailed) as failed:
            child.train(REQUEST.model_copy(update={"visit": "asg/1", "stall_s": 1.0}), lambda _: None, threading.Event())
    finally:
        child.close()
    assert failed.value.reason == "stalled"
    assert time.monotonic() - began > 0.7


def test_what_has_no_steps_to_count_moves_by_what_it_uses_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    work = "for n in range(20): say('alive', cpu_s=n * 0.1); time.sleep(0.1)\n"
    told: list[Progress] = []
    child = Child(SAY + READ + work + DONE + "sys.stdin.read()", stall_s=3600)
    try:
        metrics = child.train(REQUEST.model_copy(update={"visit": "asg/1", "stall_s": 1.0}), told.append, threading.Event())
    finally:
        child.close()
    assert metrics == METRICS
    assert len({progress.moved for progress in told}) > 10
    assert {progress.phase for progress in told} == {"loading"}


def test_steps_count_for_more_than_the_processor_while_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is gone is waited for at full speed."""
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    first = "say('progress', visit=visit, progress={'phase': 'training', 'step': 0, 'steps': 9})\n"
    spin = "for n in range(1000): say('alive', cpu_s=n * 0.1); time.sleep(0.05)"
    child = Child(SAY + READ + first + spin, stall_s=3600)
    try:
        with pytest.raises(VisitFailed) as failed:
            child.train(REQUEST.model_copy(update={"visit": "asg/1", "stall_s": 1.0}), lambda _: None, threading.Event())
    finally:
        child.close()
    assert failed.value.reason == "stalled"


@pytest.mark.parametrize("why", ["end", "lost"])
def test_a_process_that_heeds_no_stop_is_killed(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(trainer_process, "STOP_WITHIN_S" if why == "lost" else "END_WITHIN_S", 0.3)
    child, lost = Child(SAY + READ + "while True: say('alive'); time.sleep(0.05)"), threading.Event()
    threading.Timer(0.3, child.end if why == "end" else lost.set).start()
    with pytest.raises(StopRequested if why == "end" else LeaseGone):
        visited(child, lost)


@pytest.mark.parametrize("event", ["'alive'", "'progress', visit=visit, progress={'phase': 'training', 'step': 1, 'steps': 10**9}"])
def test_a_visit_without_an_end_is_ended_whatever_it_says(monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    monkeypatch.setattr(trainer_process, "LOOK_EVERY_S", 0.05)
    child = Child(SAY + READ + f"while True: say({event}); time.sleep(0.01)")
    try:
        with pytest.raises(VisitFailed, match=r"most\.seconds: training took longer.*allows 0\.5") as failed:
            child.train(REQUEST.model_copy(update={"visit": "asg/1", "bounds": HALF_A_SECOND}), lambda _: None, threading.Event())
    finally:
        child.close()
    assert failed.value.reason == "policy_refused"
    assert child._process is not None
    assert child._process.poll() is not None


def test_a_stop_is_heeded_by_a_process_that_goes_on_making_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_process, "END_WITHIN_S", 0.3)
    script = "while True: say('progress', visit=visit, progress={'phase': 'training', 'step': 1, 'steps': 2}); time.sleep(0.01)"
    child = Child(SAY + READ + script)
    threading.Timer(0.3, child.end).start()
    with pytest.raises(StopRequested):
        visited(child)


def test_a_stray_stop_does_not_end_the_daemon() -> None:
    with pytest.raises(LeaseGone):
        visited(Child(SAY + READ + "say('stopped', visit=visit)\nsys.stdin.read()"))


def test_a_process_that_is_spoilt_is_not_asked_again() -> None:
    """One that has lost its card fails in every later visit, too."""
    child = Child(SAY + READ + "say('failed', visit=visit, reason='other', message='CUDA error', spoilt=True)\nsys.stdin.read()")
    with pytest.raises(VisitFailed, match="CUDA error"):
        child.train(REQUEST.model_copy(update={"visit": "asg/1"}), lambda _: None, threading.Event())
    assert child._process is not None
    assert child._process.poll() is not None


def test_what_a_process_trains_on_is_heard_before_the_first_visit() -> None:
    ready = Child(SAY + "say('walled')\nsay('ready', device='cuda, bfloat16')\nsys.stdin.read()")
    try:
        said = ready.until_ready(60)
    finally:
        ready.close()
    assert said is not None
    assert said.device == "cuda, bfloat16"
    assert Child("sys.exit(1)").until_ready(60) is None


@pytest.mark.parametrize(
    ("script", "memory_gb", "reason"),
    [
        ("sys.exit(127)", 0.3, "memory_limit"),
        (SAY + "say('walled')\nraise MemoryError", 0.3, "memory_limit"),
        ("sys.exit(1)", None, "trainer_died"),
        ("sys.exit(1)", 8, "trainer_died"),
        ("import os\nos.kill(os.getpid(), 9)", 0.3, "trainer_died"),
        (SAY + READ + "sys.exit(1)", 0.3, "trainer_died"),
        (SAY + READ + "import os\nos.abort()", 0.3, "out_of_memory"),
        (SAY + READ + "import os\nos.abort()", None, "trainer_died"),
    ],
)
def test_a_process_that_cannot_begin_within_its_limit_is_not_begun_for_every_visit(script: str, memory_gb: float, reason: str) -> None:
    with pytest.raises(VisitFailed) as failed:
        visited(Child(script, memory_gb=memory_gb))
    assert failed.value.reason == reason
