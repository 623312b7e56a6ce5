"""Whatever process dies, the run goes on when it is there again, and ends with the weights of an undisturbed run."""

import psutil

from tests.e2e.conftest import STEPS, Federation, spec
from tests.support.processes import trainer, wait_for


def test_a_training_process_is_killed(federation: Federation, undisturbed: dict[str, str]) -> None:
    run_id = federation.start(spec("kill-trainer", STEPS, cycles=1))
    assignment = wait_for(lambda: federation.training(run_id))
    training = trainer(federation.agent_of(assignment))
    assert training is not None
    training.kill()
    assert federation.digests(run_id) == undisturbed
    attempts = [a["attempt"] for a in federation.operator.get(f"/runs/{run_id}/assignments")]
    assert max(attempts) == 2
    errors = federation.operator.get("/status")["last_errors"]
    assert any(e["code"] == "trainer_died" and "memory" in e["message"] for e in errors)


def test_the_coordinator_is_killed_while_an_agent_trains(federation: Federation, undisturbed: dict[str, str]) -> None:
    run_id = federation.start(spec("kill-coordinator", STEPS, cycles=1))
    wait_for(lambda: federation.training(run_id))
    workers = psutil.Process(federation.coordinator.pid).children(recursive=True)
    federation.coordinator.kill()
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers), limit=10)
    federation.coordinator.start()
    assert federation.digests(run_id) == undisturbed
    # The agents did not even lose their attempt.
    assert all(a["attempt"] == 1 for a in federation.operator.get(f"/runs/{run_id}/assignments"))


def test_an_agent_told_to_stop_gives_its_work_back(federation: Federation, undisturbed: dict[str, str]) -> None:
    run_id = federation.start(spec("sigterm", STEPS, cycles=1))
    agent = federation.agent_of(wait_for(lambda: federation.training(run_id)))
    assert agent.stop() == 0
    current = federation.operator.get(f"/runs/{run_id}")["current"][0]
    assert (current["state"], current["reason"]) == ("pending", "stopping")
    agent.start()
    assert federation.digests(run_id) == undisturbed


def test_agents_wait_for_a_coordinator_that_is_not_there(federation: Federation, undisturbed: dict[str, str]) -> None:
    run_id = federation.create(spec("absent", STEPS, cycles=1))
    for agent in federation.agents:
        agent.stop()
    assert federation.coordinator.stop() == 0
    for agent in federation.agents:
        agent.start(wait=False)
    wait_for(lambda: all("trying again" in agent.log.read_text() for agent in federation.agents), limit=60)
    federation.coordinator.start()
    federation.all_there()
    federation.operator.post(f"/runs/{run_id}/start")
    found = federation.digests(run_id)
    assert found == undisturbed, federation.operator.get(f"/runs/{run_id}/assignments")
