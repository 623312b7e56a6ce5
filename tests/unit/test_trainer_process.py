"""A visit that nobody wants any more is not begun."""

import threading

import pytest

from agent.errors import LeaseGone, StopRequested
from agent.messages import DataSource, TrainingOptions, TrainRequest
from agent.settings import Config
from agent.trainer_process import TrainerProcess
from shared.protocol import ParameterGroup, TrainSettings

SETTINGS = TrainSettings(task="causal-lm", groups=[ParameterGroup(blocks=["norm"], learning_rate=1.0)], batch_size=1, max_length=2, seed=0)
REQUEST = TrainRequest(
    assignment_id="asg_1", files={}, model_key="run_1", shards=[], train=SETTINGS, data=DataSource(path="rows.jsonl"), delta_path="delta"
)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> TrainerProcess:
    def begun(_self: TrainerProcess) -> None:
        pytest.fail("the training process was asked to train")

    monkeypatch.setattr(TrainerProcess, "start", begun)
    return TrainerProcess(Config.model_validate({"coordinator": "http://localhost", "data": {"path": "rows.jsonl"}}))


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


def test_the_settings_of_training_reach_the_process() -> None:
    values = {
        "coordinator": "http://localhost",
        "data": {"path": "rows.jsonl"},
        "limits": {"memory_gb": 2},
        "training": {"prefix_cache": "disk"},
    }
    *_, limit, options = TrainerProcess(Config.model_validate(values))._command
    assert int(limit) == 2_000_000_000
    assert TrainingOptions.model_validate_json(options) == TrainingOptions(prefix_cache="disk")
