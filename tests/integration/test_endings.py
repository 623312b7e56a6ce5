"""How runs end: with the average of versions where that is asked for or scores better; made once, whatever is killed, and verified."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import text

import fedcybgd.coordinator.engine.candidates
from fedcybgd import Client
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.provenance import check
from fedcybgd.coordinator.storage import BlobMissing
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.provenance import FILE
from tests.integration.test_jobs import Stuck, job_states
from tests.integration.test_measurements import held_out as held_out_rows
from tests.integration.test_measurements import in_type, loss_of_transformers
from tests.support import provenance_checker
from tests.support.browser import logged_in
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, Tensors, events, refused, run_file, settled, shard_tensors, start_run

ASKED: dict[str, Any] = {"schedule": {"cycles": 3}, "average_versions": {"last": 0.5, "keep": "average"}, "seed": 5}
"""Six rounds, of which the last three are averaged over."""


def begin(live: LiveCoordinator, folder: Path, model: str, **more: Any) -> tuple[LightAgent, str]:
    agent = LightAgent(live, folder)
    run = live.create_run({**run_file(model, [], **{**ASKED, **more}), "agents": [agent.name]}, start=True)
    return agent, run["name"]


def work(live: LiveCoordinator, agent: LightAgent, run: str, rounds: int) -> list[dict[str, Tensors]]:
    """Do so many rounds; the tensors of the blocks after each, but the last where that ends the run."""
    found = []
    for _ in range(rounds):
        assignment = agent.claim(run, wait=30)
        assert assignment is not None
        agent.visit(assignment)
        wait_for(lambda number=assignment.round: is_done(live, run, number))
        found.append(blocks(live, run))
    return found


def is_done(live: LiveCoordinator, run: str, number: int) -> bool:
    view = live.operator.get(f"/runs/{run}")
    assert view["state"] in ("running", "completed"), view["reason"]
    assert "rejected" not in [a["state"] for a in live.operator.get(f"/runs/{run}/assignments")]
    return bool(view["rounds_done"] > number)


def blocks(live: LiveCoordinator, run: str) -> dict[str, Tensors]:
    return {b["name"]: shard_tensors(live, b["digest"]) for b in live.operator.get(f"/runs/{run}")["blocks"]}


def digests(live: LiveCoordinator, run: str) -> dict[str, str]:
    return {b["name"]: b["digest"] for b in live.operator.get(f"/runs/{run}")["blocks"]}


def is_mean(live: LiveCoordinator, run: str, models: list[dict[str, Tensors]]) -> bool:
    """Whether the run ended with the mean of models, as float64 has it."""
    for block, tensors in blocks(live, run).items():
        for name, tensor in tensors.items():
            mean = torch.stack([model[block][name].double() for model in models]).mean(0)
            if not torch.allclose(tensor.double(), mean, rtol=0, atol=1e-6):
                return False
    return True


@pytest.fixture
def alone(coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path) -> LiveCoordinator:
    """It keeps no more versions than it must."""
    made = coordinators(keep_versions=0)
    made.add_model("bert", in_type(bert, tmp_path / "half", torch.bfloat16))
    return made


def test_a_run_ends_with_the_mean_of_its_versions_and_anybody_can_check_it(
    alone: LiveCoordinator, coordinators: Callable[..., LiveCoordinator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also killed while it is made, with versions that are deleted by then, and out of bfloat16."""
    live = alone
    agent, run = begin(live, tmp_path / "one", "bert")
    models = work(live, agent, run, 2)
    tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=2))
    models += work(live, agent, run, 3)
    for hours in (4, 6):
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=hours))
    with live.database.reading() as session:
        assert session.scalars(text("SELECT version FROM block_version WHERE block = 'head' AND NOT kept ORDER BY version")).all() == [0, 1]
    stuck = Stuck(monkeypatch, fedcybgd.coordinator.engine.candidates, "conclude")
    models += work(live, agent, run, 1)
    assert stuck.began.wait(10)
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    live.stop()
    stuck.mend()
    live = coordinators(keep_versions=0)
    view = settled(live, run)
    stuck.let_go()
    assert (view["state"], view["rounds_done"], view["reason"]) == ("completed", 6, None)
    assert view["conclusion"] == {"kept": "average", "rounds": 3, "best_after": 6, "scores": {}, "without": ["last"], "calibration": None}
    assert job_states(live, "conclude") == [("done", 2)]
    assert is_mean(live, run, models[3:])
    assert not is_mean(live, run, models[5:])
    assert not is_mean(live, run, models[2:])

    found = verify(live.settings, run)
    assert (found.rounds, found.versions) == (6, 5 + 6 + 6 + 3)
    target = tmp_path / "export"
    Client(live.url, live.operator_key).runs.export(run, target)
    (tmp_path / "blobs").mkdir()
    for digest, _ in live.store.stored():
        shutil.copy(live.store.path(digest), tmp_path / "blobs" / digest)
    assert check(target / FILE, export=target, blobs=tmp_path / "blobs").made_again >= found.made_again > 3, (
        "bytes that wait to be deleted help"
    )

    # What was not killed, and begins on a coordinator that has seen it before, has the same bits.
    again, other = begin(live, tmp_path / "two", "bert")
    work(live, again, other, 6)
    assert settled(live, other)["conclusion"]["kept"] == "average"
    assert digests(live, other) == digests(live, run)


AVERAGED = " FROM block_version WHERE block = 'head' AND version = 7"
LIES = [
    ("average = :others", "version_differs"),
    ("average = NULL", "version_differs"),
    ("parent = parent - 1", "version_differs"),
    ("round = round - 1", "version_differs"),
    ("digest = :last", "version_not_reproduced"),
]


def test_a_lie_about_an_average_is_found_here_and_by_a_stranger(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path
) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hand = Hand(live)
    run = start_run(live, "bert", [hand], **ASKED)
    models = expect(live, hand, run, [1, 2, 3, 4, 5, 6])
    settled(live, run)
    assert is_mean(live, run, models[3:])
    assert verify(live.settings, run).made_again == 12 + 3
    target = tmp_path / "export"
    Client(live.url, live.operator_key).runs.export(run, target)
    (tmp_path / "blobs").mkdir()
    for digest, _ in live.store.stored():
        shutil.copy(live.store.path(digest), tmp_path / "blobs" / digest)
    assert provenance_checker.check(target / FILE, live.operator.get("/key")["key"], target, tmp_path / "blobs") == 12 + 3
    assert check(target / FILE, export=target, blobs=tmp_path / "blobs").made_again == 12 + 3

    with live.database.reading() as session:
        last, average = session.execute(
            text("SELECT (SELECT digest FROM block_version WHERE block = 'head' AND version = 6), average" + AVERAGED)
        ).one()
    terms = json.loads(average)
    assert terms == [{"version": v, "rounds": 1} for v in (4, 5, 6)]
    others = json.dumps([{**term, "version": term["version"] - 1} for term in terms])
    for change, code in LIES:
        with live.database.transaction() as session:
            before = session.execute(text("SELECT average, digest, parent, round" + AVERAGED)).one()
            session.execute(
                text(f"UPDATE block_version SET {change} WHERE block = 'head' AND version = 7"), {"last": last, "others": others}
            )
            if "last" in change:
                session.execute(text("UPDATE block SET digest = :last WHERE name = 'head'"), {"last": last})
        with pytest.raises(FedError) as found:
            verify(live.settings, run)
        assert found.value.code == code, change
        assert "block head, version 7" in found.value.message
        with live.database.transaction() as session:
            back = "average = :average, digest = :digest, parent = :parent, round = :round"
            session.execute(text(f"UPDATE block_version SET {back} WHERE block = 'head' AND version = 7"), before._asdict())


# ---- which is kept --------------------------------------------------------------------------------------------------


def first_label(live: LiveCoordinator, folder: Path, every: object) -> dict[str, Any]:
    """Held-out rows that are all of the first label."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"my card is lost {'please ' * i}", "label": 0}) + "\n" for i in range(4)))
    evaluate = {"held_out": rows.name, "digest": Client(live.url, live.operator_key).runs.upload_held_out(rows), "every": every}
    return {"evaluate": evaluate, "admission": {"norm_band": None, "gate": "off"}}


def expect(live: LiveCoordinator, hand: Hand, run: str, biases: list[float]) -> list[dict[str, Tensors]]:
    """Rounds whose deltas change nothing but how much the head expects the first label, by so much; the model after each."""
    models, model = [], blocks(live, run)  # by addition: after the last round another model may have taken its place already
    for bias in biases:
        assignment = hand.take(run)
        tensors = {name: torch.zeros_like(t) for name, t in hand.delta(assignment).items()}
        (name,) = [n for n, t in tensors.items() if t.shape == (3,)]
        tensors[name][0] = bias
        hand.deliver(assignment, tensors)
        wait_for(lambda number=assignment.round: is_done(live, run, number))
        model = {block: {n: t + tensors[n] if n in tensors else t for n, t in part.items()} for block, part in model.items()}
        models.append(model)
    return models


def completed(live: LiveCoordinator, run: str) -> str:
    """What the event says."""
    (text,) = [e["message"] for e in live.operator.get(f"/runs/{run}")["events"] if e["code"] == "run_completed"]
    return str(text)


@pytest.mark.parametrize(("biases", "expected"), [([6, 6.1, 6.2, -40], "average"), ([-6, -6.1, 4, 16], "last")])
def test_what_scores_better_on_the_held_out_rows_is_kept(
    live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path, biases: list[float], expected: str
) -> None:
    more = {"average_versions": {"last": 1}, **first_label(live, tmp_path, "end")}
    run = start_run(live, model, [hand], schedule={"cycles": 2}, **more)
    models = expect(live, hand, run, biases)
    view = settled(live, run)
    scores = view["conclusion"]["scores"]
    assert (view["state"], view["conclusion"]["kept"]) == ("completed", expected)
    assert (scores["average"]["accuracy"], scores["last"]["accuracy"]) == ((1.0, 0.0) if expected == "average" else (0.0, 1.0))
    assert scores["last"]["loss"] == view["evaluations"][-1]["loss"]
    said = completed(live, run).partition("; ")[2]
    assert logged_in(live).get(f"/admin/runs/{run}").text.count(said) == 1, said
    assert is_mean(live, run, models if expected == "average" else models[3:])
    assert verify(live.settings, run).rounds == 4
    assert "accuracy 100.00%" in completed(live, run)
    assert "accuracy 0.00%" in completed(live, run)
    codes = [e["code"] for e in view["events"]]
    assert codes.count("no_better_than_majority") == 1, "all rows have the first label"


def test_the_best_of_all_is_kept_and_can_be_verified(alone: LiveCoordinator, tmp_path: Path) -> None:
    """Also where its versions would have been deleted by then, and the average is worse, too."""
    live, hand = alone, Hand(alone)
    more = {"average_versions": {"last": 0.5}, "keep_best": True, **first_label(live, tmp_path, "round")}
    run = start_run(live, "bert", [hand], schedule={"cycles": 3}, **more)
    models = expect(live, hand, run, [6, 6.5, -30, 1, 2])
    settled(live, run)
    for hours in (2, 4):
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=hours))
    expect(live, hand, run, [3])
    view = settled(live, run)
    assert (view["conclusion"]["kept"], view["conclusion"]["best_after"]) == ("best", 2)
    assert view["conclusion"]["without"] == ["last", "average"]
    assert is_mean(live, run, models[1:2])
    made = {b["origin"]: b["last"] for b in live.operator.get(f"/runs/{run}/blocks") if b["origin"] != "base"}
    assert made["best"] is None, "a delta that is not in it has not made it"
    assert "the best version, after 2 rounds (accuracy 100.00%" in completed(live, run)
    assert verify(live.settings, run).rounds == 6
    Client(live.url, live.operator_key).runs.export(run, tmp_path / "export")
    assert check(tmp_path / "export" / FILE, export=tmp_path / "export").export_checked
    with live.database.transaction() as session:
        session.execute(text("UPDATE block_version SET average = replace(average, '2', '1') WHERE block = 'head' AND origin = 'best'"))
    with pytest.raises(FedError, match=r"block head, version 7: it is to be an older version again"):
        verify(live.settings, run)


def test_a_run_without_a_better_score_ends_early_and_says_so(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    """It waits for the score that may end it, so that it ends after the same round whenever it is done again."""
    more = {"keep_best": True, "stop": {"patience": 2}, **first_label(live, tmp_path, "round")}
    run = start_run(live, model, [hand], schedule={"cycles": 9}, **more)
    models = expect(live, hand, run, [9, -18, -1])
    view = settled(live, run)
    assert (view["state"], view["rounds_done"], view["rounds_total"], view["conclusion"]["kept"]) == ("completed", 3, 18, "best")
    assert view["reason"].startswith("ended early, after 3 of 18 rounds: the last 2 scores were no better than the one after 1 round (")
    assert view["reason"] in completed(live, run)
    assert hand.claim(run) is None
    assert is_mean(live, run, models[:1])
    assert verify(live.settings, run).rounds == 3


def test_a_run_rolls_on_from_its_best(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    runs = Client(live.url, live.operator_key).runs
    run = start_run(live, model, [hand], schedule={"cycles": 2}, stop={"patience": 3}, **first_label(live, tmp_path, "round"))
    models = expect(live, hand, run, [9, -18, -1])
    settled(live, run)
    assert runs.rollback(run, best=True).rounds_done == 1
    assert is_mean(live, run, models[:1])
    runs.resume(run)
    expect(live, hand, run, [1, 2, 3])
    view = settled(live, run)
    assert (view["state"], view["rounds_done"], view["reason"], view["conclusion"]) == ("completed", 4, None, None)
    for body in ({}, {"after_rounds": 1, "best": True}):
        refused(live.operator._http.post(f"/runs/{run}/rollback", json=body), 422, "invalid_request")
    unscored = start_run(live, model, [hand])
    refused(live.operator._http.post(f"/runs/{unscored}/rollback", json={"best": True}), 409, "never_scored")
    assert live.operator.get(f"/runs/{unscored}")["state"] == "running"
    live.operator.post(f"/runs/{unscored}/cancel")


def test_the_score_of_an_average_is_that_of_its_export(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    evaluate = held_out_rows(live, tmp_path, "end")
    agent, run = begin(live, tmp_path / "agent", model, evaluate=evaluate)
    work(live, agent, run, 6)
    view = settled(live, run)
    Client(live.url, live.operator_key).runs.export(run, tmp_path / "export")
    assert view["conclusion"]["scores"]["average"]["loss"] == pytest.approx(loss_of_transformers(tmp_path / "export"), abs=2e-6)


def test_an_average_that_cannot_be_made_is_said_and_the_run_ends(
    live: LiveCoordinator, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Any:
        raise BlobMissing("a delta of layers.0 is missing")

    agent, run = begin(live, tmp_path, model)
    monkeypatch.setattr(fedcybgd.coordinator.engine.candidates, "conclude", missing)
    models = work(live, agent, run, 6)
    view = settled(live, run)
    assert (view["state"], view["conclusion"]) == ("completed", None)
    assert "blob_missing" in events(live, run)
    assert is_mean(live, run, models[5:])


def test_rounds_that_are_taken_back_meanwhile_are_done_and_averaged_again(
    live: LiveCoordinator, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, run = begin(live, tmp_path, model)
    with monkeypatch.context() as patch:
        stuck = Stuck(patch, fedcybgd.coordinator.engine.candidates, "conclude")
        models = work(live, agent, run, 6)
        assert stuck.began.wait(10)
        assert live.operator.post(f"/runs/{run}/rollback", {"after_rounds": 4})["state"] == "paused"
        stuck.let_go()
        view = settled(live, run)
        assert (view["state"], view["rounds_done"]) == ("paused", 4)
    live.operator.post(f"/runs/{run}/resume")
    work(live, agent, run, 2)
    assert settled(live, run)["conclusion"]["kept"] == "average"
    assert is_mean(live, run, models[3:])
    assert verify(live.settings, run).rounds == 6
