"""A training process that really hangs: its agent gives the visit up, and another does it."""

import signal
import tomllib
from collections.abc import Iterator

import pytest

from fedcybgd.local.toml import dumps
from tests.e2e.conftest import STEPS, Federation, spec
from tests.support.processes import trainer, wait_for


@pytest.fixture
def impatient(federation: Federation) -> Iterator[Federation]:
    """Its agents give up after ten seconds; agent.toml is read again before the next claim."""
    files = {agent.home / "agent.toml": (agent.home / "agent.toml").read_text() for agent in federation.agents}
    for file, text in files.items():
        values = tomllib.loads(text)
        values["limits"] = {**values.get("limits", {}), "stall_s": 10}
        file.write_text(dumps(values))
    yield federation
    for file, text in files.items():
        file.write_text(text)


def test_a_visit_whose_training_hangs_is_done_by_another(impatient: Federation) -> None:
    federation = impatient
    run_id = federation.start(spec("hung-trainer", STEPS, cycles=1))
    held = wait_for(lambda: federation.training(run_id))
    hanging = trainer(federation.agent_of(held))
    assert hanging is not None
    hanging.send_signal(signal.SIGSTOP)
    after = wait_for(lambda: (a := federation.training(run_id)) and a["attempt"] > 1 and a, limit=60)
    assert after["id"] == held["id"]
    assert after["agent"] != held["agent"], "another had it while the first one had a new training process to start"
    assert not hanging.is_running()
    view = federation.finished(run_id)
    assert view["rounds_done"] == 2
    assert "stalled" in [e["code"] for e in view["events"]]
