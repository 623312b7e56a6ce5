"""Taking rounds back, and an agent's deltas out: the model is the older one to the byte, goes on as if nothing had been, and is verified."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import fedcybgd.coordinator.engine.apply
from fedcybgd import Client
from fedcybgd.client.errors import Refused
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.provenance import check
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.sizes import counted
from tests.integration.test_methods import blocks_of, drawn
from tests.support import provenance_checker
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.methods import all_averaged
from tests.support.visits import Hand, refused, run_file, settled, shard_tensors, wire

INT8: dict[str, Any] = {"compression": {"policy": "int8"}, "delta": {"codec": "int8", "error_feedback": True}, "schedule": {"cycles": 2}}


@pytest.fixture
def live(coordinators: Callable[..., LiveCoordinator], bert: Path) -> LiveCoordinator:
    made = coordinators()
    made.add_model("bert", bert)
    return made


def runs(live: LiveCoordinator) -> Any:
    return Client(live.url, live.operator_key).runs


def digests(live: LiveCoordinator, run: str) -> dict[str, str]:
    return {b["name"]: b["digest"] for b in live.operator.get(f"/runs/{run}")["blocks"]}


def work(live: LiveCoordinator, agent: LightAgent, run: str, rounds: int) -> list[dict[str, str]]:
    """Do so many rounds more; the blocks after each."""
    found = []
    for _ in range(rounds):
        assignment = agent.claim(run, wait=30)
        assert assignment is not None
        agent.visit(assignment)
        settled(live, run)
        found.append(digests(live, run))
    return found


def begin(live: LiveCoordinator, folder: Path, **more: Any) -> tuple[LightAgent, str]:
    agent = LightAgent(live, folder)
    run = live.create_run({**run_file("bert", [], **INT8 | {"seed": 5} | more), "agents": [agent.name]}, start=True)
    return agent, run["name"]


@pytest.mark.database_decides
def test_a_run_that_was_taken_back_ends_in_the_same_bytes(live: LiveCoordinator, tmp_path: Path) -> None:
    """Also from versions that are deleted by then, with error feedback, and twice over."""
    agent, run = begin(live, tmp_path / "one")
    models = [digests(live, run), *work(live, agent, run, 4)]
    assert live.operator.get(f"/runs/{run}")["state"] == "completed"
    refused(live.operator._http.post(f"/runs/{run}/rollback", json={"after_rounds": 1}), 409, "invalid_transition")

    agent, run = begin(live, tmp_path / "two")
    assert work(live, agent, run, 3) == models[1:4]
    for hours in (2, 4):
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=hours))
    assert not live.store.has(models[1]["head"])
    older = runs(live).export(run, tmp_path / "older", version=1)
    assert older.after_rounds == 1
    assert "1 of 4 rounds" in (tmp_path / "older" / "README.md").read_text()
    check(tmp_path / "older" / "provenance.json", None, tmp_path / "older", live.settings.blobs)
    assert digests(live, run) == models[3], "the run itself is as it was"
    held = agent.claim(run, wait=30)
    assert held is not None
    for rounds in (1, 0):
        view = runs(live).rollback(run, rounds)
        assert (view.state, view.rounds_done) == ("paused", rounds)
        assert view.reason is not None
        assert f"after {counted(rounds, 'round')};" in view.reason
        assert runs(live).explain(run).advice == f"`fedcoord run resume {run}`", "nothing is to be mended"
        assert [a["level"] for a in live.operator.get("/status")["alarms"] if a["run"] == run] == ["warning"]
        assert digests(live, run) == models[rounds]
        assert verify(live.settings, run).rounds == rounds
        if rounds == older.after_rounds:
            now = {file.name: file.digest for file in runs(live).export(run, tmp_path / "now").files}
            assert now == {file.name: file.digest for file in older.files}
        runs(live).resume(run)
        if rounds:
            state = agent.client.state(held.assignment_id)
            assert (state.state, state.reason) == ("undone", "rolled_back")
            assert work(live, agent, run, 1) == [models[2]]
    assert work(live, agent, run, 4) == models[1:]
    end = settled(live, run)
    assert end["state"] == "completed"
    assert {b["name"]: b["version"] for b in end["blocks"]}["head"] > 4, "a number stands for the same bytes for ever"
    found = verify(live.settings, run)
    assert (found.rounds, found.deltas) == (4, 4), "the same deltas, given anew"
    events = [e["code"] for e in end["events"]]
    assert events.count("run_rolled_back") == 2


def test_what_is_under_way_is_undone_and_what_comes_of_it_too_late_is_nothing(live: LiveCoordinator) -> None:
    hands = [Hand(live), Hand(live)]
    run = live.create_run(run_file("bert", hands, seed=3, schedule={"cycles": 3, "wave": 2}), start=True)["name"]
    before = digests(live, run)
    for hand in hands:
        hand.deliver(hand.take(run))
    settled(live, run)
    first, second = (hand.take(run) for hand in hands)
    hands[0].deliver(first)
    settled(live, run)
    view = runs(live).rollback(run, 0)
    assert (view.rounds_done, digests(live, run)) == (0, before)
    refused(hands[1].renew(second), 409, "lease_lost")
    assert [a["state"] for a in live.operator.get(f"/runs/{run}/assignments")] == ["undone"] * 4
    assert live.operator.get(f"/runs/{run}/rounds") == []
    runs(live).resume(run)
    for hand in hands:
        hand.deliver(hand.take(run))
    assert settled(live, run)["rounds_done"] == 1
    assert verify(live.settings, run).rounds == 1
    live.operator.post(f"/runs/{run}/cancel")


def test_a_job_that_failed_before_is_done_again_for_nobody(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that failed; the run is taken back, and resumed: failed jobs are repeated then."""
    hand = Hand(live)
    run = live.create_run(run_file("bert", [hand], seed=4, schedule={"cycles": 2}), start=True)["name"]
    before = digests(live, run)
    hand.deliver(hand.take(run))
    settled(live, run)

    def full(*_: Any) -> Any:
        raise ValueError("a shape that nobody knows")

    with monkeypatch.context() as patched:
        patched.setattr(fedcybgd.coordinator.engine.apply, "apply", full)
        hand.deliver(hand.take(run))
        assert settled(live, run)["state"] == "paused"
    assert runs(live).rollback(run, 0).rounds_done == 0
    runs(live).resume(run)
    assert settled(live, run)["state"] == "running"
    assert digests(live, run) == before
    hand.deliver(hand.take(run))
    assert settled(live, run)["rounds_done"] == 1
    assert verify(live.settings, run).rounds == 1
    live.operator.post(f"/runs/{run}/cancel")


def test_a_round_that_is_not_there_or_not_kept_is_refused_and_nothing_changes(live: LiveCoordinator) -> None:
    live.settings.keep_versions = 1
    hand = Hand(live)
    run = live.create_run(run_file("bert", [hand], schedule={"cycles": 4}), start=True)["name"]
    client = live.operator._http
    for number in range(5):
        hand.deliver(hand.take(run))
        settled(live, run)
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=2 * number))
    now = digests(live, run)
    said = refused(client.post(f"/runs/{run}/rollback", json={"after_rounds": 6}), 404, "round_unknown").message
    assert said.endswith("what it was is there after 0 to 5 of them")
    refused(client.post(f"/runs/{run}/rollback", json={"after_rounds": 1}), 409, "versions_not_kept")
    for query, status, code in (
        ("after_rounds=6", 404, "round_unknown"),
        ("after_rounds=1", 409, "versions_not_kept"),
        ("best=true", 409, "never_scored"),
    ):
        refused(client.post(f"/runs/{run}/exports?{query}"), status, code)
    refused(client.post(f"/runs/{run}/without", json={"agent": "nobody"}), 404, "not_found")
    refused(client.post(f"/runs/{run}/without", json={"agent": Hand(live).name}), 409, "nothing_to_undo")
    refused(client.post(f"/runs/{run}/without", json={"agent": hand.name}), 409, "versions_not_kept")
    assert digests(live, run) == now
    assert live.operator.get(f"/runs/{run}")["state"] == "running", "what was refused has paused nothing"
    assert runs(live).rollback(run, 4).rounds_done == 4
    acts = [(a.act.rpartition("/")[2], a.subject, a.outcome) for a in Client(live.url, live.operator_key).audit()]
    assert ("rollback", f"{run} 1", "versions_not_kept") in acts
    assert ("without", f"{run} {hand.name}", "versions_not_kept") in acts
    assert acts[-1] == ("rollback", f"{run} 4", "done")
    assert verify(live.settings, run).rounds == 4
    runs(live).resume(run)
    for number in range(5, 8):  # of what went back the way stays known, too
        hand.deliver(hand.take(run))
        settled(live, run)
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=2 * number))
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=2 * number + 1.5))
        assert verify(live.settings, run).made_again
    assert runs(live).rollback(run, 6).rounds_done == 6
    live.operator.post(f"/runs/{run}/cancel")


def test_what_cannot_be_made_again_leaves_the_run_as_it_is(live: LiveCoordinator, tmp_path: Path) -> None:
    agent, run = begin(live, tmp_path)
    work(live, agent, run, 2)
    for hours in (2, 4):
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=hours))
    first = live.operator.get(f"/runs/{run}/assignments")[0]["delta_digest"]
    live.store.path(first).unlink()
    now = digests(live, run)
    view = runs(live).rollback(run, 1)
    assert view.reason is not None
    assert first in view.reason
    assert (view.state, view.rounds_done, digests(live, run)) == ("paused", 2, now)
    with pytest.raises(Refused):
        runs(live).rollback(run, 9)


def test_without_an_agent_the_others_of_its_first_round_stay_and_the_rest_is_trained_again(live: LiveCoordinator) -> None:
    hands = [Hand(live), Hand(live), Hand(live)]
    good, bad, third = hands
    spec = run_file("bert", hands, seed=9, schedule={"cycles": 3, "wave": 2, "reassign_after_s": 0})
    run = live.create_run(spec, start=True)["name"]
    base = digests(live, run)
    given: dict[str, Any] = {}
    for hand in (good, bad):
        assignment = hand.take(run)
        given[hand.name] = (assignment.block, hand.delta(assignment))
        hand.deliver(assignment, given[hand.name][1])
    settled(live, run)
    after_first = digests(live, run)
    for hand in (good, third):
        hand.deliver(hand.take(run))
    settled(live, run)

    view = runs(live).without(run, bad.name)
    assert (view.state, view.rounds_done) == ("paused", 0)
    assert view.reason is not None
    assert bad.name in view.reason
    now, (mine, delta), (its, _) = digests(live, run), given[good.name], given[bad.name]
    assert now[mine] == after_first[mine], "nobody else had a part in it"
    assert now[its] == base[its]
    head, old = (shard_tensors(live, found["head"]) for found in (now, base))
    assert all((head[name] == old[name] + delta[name]).all() for name in head), "averaged over those that are left"
    assert verify(live.settings, run).rounds == 0
    runs(live).resume(run)
    assert bad.claim(run) is None, "it takes no part any more"
    while live.state_of(run) == "running":
        for hand in (good, third):
            if (assignment := hand.claim(run, wait=0.3)) is not None:
                hand.deliver(assignment)
    view = settled(live, run)
    assert view["state"] == "completed"
    assert bad.name not in {a["agent"] for a in live.operator.get(f"/runs/{run}/assignments") if a["applied"]}
    assert verify(live.settings, run).rounds == 3


@pytest.mark.parametrize("average", ["trimmed_mean", "median", "geometric_median"])
def test_a_robust_mean_is_taken_anew_without_an_agent_and_a_stranger_finds_the_same(
    live: LiveCoordinator, tmp_path: Path, average: str
) -> None:
    hands = [Hand(live) for _ in range(5)]
    with all_averaged() as method:
        spec = run_file(
            "bert",
            hands,
            method=method,
            admission={"average": average, "max_relative_norm": None},
            schedule={"cycles": 2, "reassign_after_s": 0},
        )
        run = live.create_run(spec, start=True)["name"]
        base, deltas = blocks_of(live, run), []
        for number, hand in enumerate(hands):
            assignment = hand.take(run)
            deltas.append(drawn(hand, assignment, number))
            hand.deliver(assignment, deltas[-1])
        settled(live, run)
        for gone in hands[:1:-1]:
            assert verify(live.settings, run).made_again
            assert "run_rolled_back" in [e["code"] for e in live.operator.get(f"/runs/{run}")["events"]] or gone is hands[-1]
            runs(live).without(run, gone.name)
        now = blocks_of(live, run)
        # Whoever comes first may stand in for another.
        seats = {a["agent"]: a["seat"] for a in live.operator.get(f"/runs/{run}/assignments")}
        one, two = (deltas[number] for number in sorted([0, 1], key=lambda number: seats[hands[number].name]))
        for name, old in base["head"].items():
            assert (now["head"][name] == old + 0.5 * one[name] + 0.5 * two[name]).all(), "of two, the mean"
        assert verify(live.settings, run).rounds == 0
        said = runs(live).provenance(run)
        live.operator.post(f"/runs/{run}/cancel")
    assert [v.aggregate for v in said.versions if v.block == "head" and v.terms] == [average] * 3 + ["sum"]
    (tmp_path / "provenance.json").write_text(said.model_dump_json())
    for digest, _ in live.store.stored():
        shutil.copy(live.store.path(digest), tmp_path / digest)
    key = wire(live).get("/key").json()["key"]
    assert provenance_checker.check(tmp_path / "provenance.json", key, tmp_path, tmp_path) == 4 * 3
