"""Scores, losses and fidelities: of checkpoints of every type, when they fail, and when they come slower than the rounds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sqlalchemy import select

from fedcybgd import Client
from fedcybgd.coordinator.commands.run_view import draw
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Job, Run
from fedcybgd.coordinator.domain.compression import FidelityTooLow, plan_key
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.emulators import choose, fidelity
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.read import status
from fedcybgd.coordinator.services.upkeep import garbage, versions_kept
from fedcybgd.shared.contract.manifests import Manifest
from fedcybgd.shared.contract.views import RunView
from tests.support.browser import logged_in
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, finish, fresh, run_file, settled, start_run

ROWS = [{"text": f"my card is {'lost' if i % 3 else 'not working'} " + "please " * (i % 5), "label": i % 3} for i in range(12)]
INT8 = {"compression": {"policy": "int8"}, "delta": {"codec": "int8"}}


def held_out(live: LiveCoordinator, folder: Path, every: object = "round") -> dict[str, Any]:
    path = folder / "held_out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"held_out": path.name, "digest": Client(live.url, live.operator_key).runs.upload_held_out(path), "every": every}


def in_type(folder: Path, target: Path, dtype: torch.dtype) -> Path:
    """A copy of a BERT whose weights are stored in another type."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(folder, dtype=dtype).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def loss_of_transformers(folder: Path) -> float:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    encoded = AutoTokenizer.from_pretrained(folder)([row["text"] for row in ROWS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        return float(model(**encoded, labels=torch.tensor([row["label"] for row in ROWS])).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_checkpoint_of_any_type_is_trained_sent_and_scored(live: LiveCoordinator, bert: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Two cycles with int8 emulators, patches and deltas: every score is there, and is what transformers says of the export."""
    model = live.add_model(fresh("typed"), in_type(bert, tmp_path / "model", dtype))["name"]
    agents = [LightAgent(live, tmp_path / f"agent{i}") for i in range(2)]
    spec = run_file(model, "all", evaluate=held_out(live, tmp_path), schedule={"blocks": ["layers", "embeddings"], "cycles": 2}, **INT8)
    run = live.create_run(spec | {"agents": [a.name for a in agents]}, start=True)["name"]
    while live.state_of(run) == "running":
        for agent in agents:
            if (assignment := agent.claim(run)) is not None:
                agent.visit(assignment)
        if (view := settled(live, run))["rounds_done"] in (1, 6):
            made = live.operator.post(f"/runs/{run}/exports")["export_id"]
            files = live.operator.wait(lambda made=made: live.operator.get(f"/runs/{run}/exports/{made}"), lambda v: v["ready"])["files"]
            folder = tmp_path / f"export{view['rounds_done']}"
            folder.mkdir(exist_ok=True)
            for file in files:
                (folder / file["name"]).write_bytes(live.store.path(file["digest"]).read_bytes())
            assert view["evaluations"][-1]["after_rounds"] == view["rounds_done"]
            assert view["evaluations"][-1]["loss"] == pytest.approx(loss_of_transformers(folder), abs=2e-6)
    view = settled(live, run)
    assert (view["state"], view["failed_measurements"]) == ("completed", 0)
    assert [e["after_rounds"] for e in view["evaluations"]] == list(range(7))
    assert all(f["cosine"] > 0.9 for r in view["rounds"] for f in r["fidelity"])
    assert all(r["loss_before"] is not None and r["loss_after"] is not None for r in view["rounds"])


def shown(view: dict[str, Any]) -> str:
    console = Console(width=150, record=True, file=None)
    with console.capture() as captured:
        console.print(draw(RunView.model_validate(view)))
    return captured.get()


def page(live: LiveCoordinator, run: str) -> str:
    answer = logged_in(live).get(f"/admin/runs/{run}")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_failed_measurement_is_kept_and_shown_as_failed(coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path) -> None:
    """The held-out file is gone: the run completes, and nobody can take it for one that was scored."""
    live, model = coordinators(), "bert"  # its own: the page shows the newest runs whole
    live.add_model(model, bert)
    hand = Hand(live)
    evaluate = held_out(live, tmp_path)
    spec = run_file(model, [hand], evaluate=evaluate, compression={"policy": "int8"})
    run = live.create_run(spec)["name"]
    live.store.delete(evaluate["digest"])
    live.operator.post(f"/runs/{run}/start")
    while (assignment := hand.claim(run, wait=2)) is not None:
        settled(live, run)
        hand.deliver(assignment, hand.delta(assignment))
    view = settled(live, run)
    assert view["state"] == "completed"
    assert [(e["after_rounds"], e["loss"], e["failed"]["code"]) for e in view["evaluations"]] == [
        (number, None, "blob_missing") for number in range(view["rounds_done"] + 1)
    ]
    assert evaluate["digest"] in view["evaluations"][-1]["failed"]["message"]
    assert {r["loss_failed"]["code"] for r in view["rounds"]} == {"blob_missing"}
    assert [(f["cosine"], f["loss_real"], f["failed"]["code"]) for r in view["rounds"] for f in r["fidelity"]] == [
        (None, None, "blob_missing") for _ in view["rounds"]
    ]
    assert view["failed_measurements"] == 3 * view["rounds_done"] + 2
    ended = next(e for e in view["events"] if e["code"] == "run_completed")
    assert ended["level"] == "warning"
    assert "measurements failed" in ended["message"]
    said = [e["message"] for e in live.operator.get("/status")["last_errors"]]
    assert any(
        m.startswith(f"the score after {view['rounds_done']} rounds could not be measured: held-out file held_out.jsonl: no blob")
        for m in said
    ), said
    text = shown(view)
    assert "could not be measured" in text
    assert "failed: blob_missing" in text
    html = page(live, run)
    assert f"of scores, losses and fidelities {view['failed_measurements']} could not be measured" in html
    assert html.count("failed: blob_missing") >= 3
    assert "-1.0" not in json.dumps(view)
    assert "-1.000" not in html


@pytest.mark.parametrize("below", ["upgrade", "refuse"])
def test_a_fidelity_that_cannot_be_measured_is_under_every_floor(below: str) -> None:
    from fedcybgd.coordinator.domain import compression

    settings = RunFile.model_validate(run_file("m", "all", compression={"policy": "int8", "floor": -1, "below_floor": below})).compression
    blocks = [compression.BlockFacts(f"layers.{i}", "layer", 100_000) for i in range(2)]
    plan = compression.plan(settings, blocks, {"layers.0"})
    assert isinstance(plan, dict)
    known = {plan_key(plan): compression.UNMEASURABLE}
    if below == "upgrade":
        assert compression.plan(settings, blocks, {"layers.0"}, fidelity=known) == {"layers.0": "exact", "layers.1": "exact"}
        return
    with pytest.raises(FidelityTooLow, match="could not be measured") as raised:
        compression.plan(settings, blocks, {"layers.0"}, fidelity=known)
    assert json.loads(json.dumps(raised.value.detail, allow_nan=False))["cosine"] is None


def queue(database: Database, kind: JobKind) -> list[tuple[str, int]]:
    """(state, number of the round) of the jobs of a kind, in their order."""
    with database.reading() as session:
        jobs = session.scalars(select(Job).where(Job.kind == kind).order_by(Job.created_at, Job.id)).all()
        return [(job.state, job.payload_json.get("after_rounds", job.payload_json.get("round"))) for job in jobs]


def test_of_measurements_that_wait_the_newest_wins(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path, database_url: str
) -> None:
    """The engine is slower than the rounds, here it stands still: the queue does not grow, and what is skipped pins no blob."""
    live = coordinators()
    live.add_model("bert", bert)
    agent = Hand(live)
    run = start_run(live, "bert", [agent], evaluate=held_out(live, tmp_path), compression={"policy": "int8"})
    settled(live, run)
    live.stop()
    database = Database(database_url)
    before = {kind: len(queue(database, kind)) for kind in (JobKind.LOSS, JobKind.EVALUATE, JobKind.FIDELITY)}
    with database.transaction() as session:
        row = queries.run_by_name(session, run)
        spec = row.spec
        (assignment,) = queries.assignments_of(session, row.id, 0)
        blocks = queries.blocks_of(session, row.id)
        plan = choose.frozen_plan(spec, [choose.facts_of_block(b) for b in blocks])
        for number in range(4):
            for block in blocks:
                block.digest = f"{number}{block.position}".ljust(64, "0")
            row.rounds_done = number
            session.flush()
            scores.evaluate_if_due(session, row, number, utcnow())
            assignment.round = number
            for other in (plan, plan | {"layers.1": "int4"}):
                manifest = Manifest(files=row.files, blocks=queries.shard_refs(blocks))
                fidelity.request_fidelity(session, row, spec, assignment, other, manifest, utcnow())
    skipped, waits = JobState.SKIPPED, JobState.QUEUED
    assert queue(database, JobKind.LOSS)[before[JobKind.LOSS] :] == [(skipped, 0), (skipped, 1), (skipped, 2), (waits, 3)]
    # What the training is measured against is not skipped; of one round, all emulators may be waited for.
    assert queue(database, JobKind.EVALUATE)[before[JobKind.EVALUATE] :] == [(waits, 0), (skipped, 1), (skipped, 2), (waits, 3)]
    assert queue(database, JobKind.FIDELITY)[before[JobKind.FIDELITY] :] == [(skipped, n) for n in (0, 0, 1, 1, 2, 2)] + [(waits, 3)] * 2
    with database.transaction() as session:
        needed = garbage.needed(session, utcnow())
        assert {f"{n}{b.position}".ljust(64, "0") for n in (0, 3) for b in blocks} <= needed
        assert not {f"{n}{b.position}".ljust(64, "0") for n in (1, 2) for b in blocks} & needed
        view = status.run_view(session, session.get_one(Run, row.id), utcnow())
        assert [(e.after_rounds, e.failed.code) for e in view.evaluations if e.failed] == [(1, "skipped"), (2, "skipped")]
        assert view.failed_measurements == 0
    database.close()


def test_a_failed_measurement_pins_no_blob(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    evaluate = held_out(live, tmp_path)
    made = live.create_run(run_file(model, [hand], evaluate=evaluate, seed=991))
    run, run_id = made["name"], made["id"]
    live.store.delete(evaluate["digest"])
    live.operator.post(f"/runs/{run}/start")
    before = {b["digest"] for b in live.operator.get(f"/runs/{run}")["blocks"] if b["name"] == "head"}
    finish(live, run, [hand])
    settled(live, run)
    with live.database.transaction() as session:
        assert any(job.state == JobState.FAILED for job in session.scalars(select(Job).where(Job.kind == JobKind.LOSS)))
        versions_kept.forget(session, run_id, 0)  # the history of the run needs what it began with
        assert not before & garbage.needed(session, utcnow())
