"""What is over can be deleted, all of it and nothing else; what somebody is at, or others need, cannot."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, Table, cast, event, func, select, update
from typer.testing import CliRunner

from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.db.base import Base, utcnow
from fedcybgd.coordinator.db.models import Assignment, Block, Job, Run
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.services.operate.deletion import delete_ended_run
from fedcybgd.coordinator.services.records import ledgers
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.sweeper import tidy
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, operator, refused, run_file, start_run

YEAR = timedelta(days=365)


def columns_with(live: LiveCoordinator, value: str) -> set[str]:
    """Tables and columns in which a value is part of any row, whatever the type; but for the log of acts and of what happened."""
    with live.database.reading() as session:
        return {
            f"{table.name}.{column.name}"
            for table in tables()
            for column in table.columns
            if session.scalar(select(func.count()).where(cast(column, String).like(f"%{value}%")).select_from(table))
        }


def tables() -> Iterator[Table]:
    yield from (table for table in Base.metadata.sorted_tables if table.name not in ("audit", "event"))


def ended(live: LiveCoordinator, model: str, hand: Hand, **spec: Any) -> str:
    """The id of a run that had one visit, and was cancelled."""
    run = start_run(live, model, [hand], **spec)
    hand.deliver(hand.take(run))
    live.operator.post(f"/runs/{run}/cancel")
    live.operator.wait(lambda: live.operator.get(f"/runs/{run}"), lambda r: not r["pending_jobs"], every=0.05, limit=60)
    return str(live.operator.get(f"/runs/{run}")["id"])


def id_of(live: LiveCoordinator, hand: Hand) -> str:
    return str(live.operator.get(f"/agents/{hand.name}")["id"])


@pytest.mark.database_decides
def test_a_run_that_is_over_goes_with_all_that_is_written_of_it(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run, other = ended(live, model, hand, seed=5), ended(live, model, hand, seed=6)
    before, agent = columns_with(live, other), id_of(live, hand)
    with live.database.reading() as session:
        digests = set(session.scalars(select(Block.digest).where(Block.run_id == run)))
        own = digests - set(session.scalars(select(Block.digest).where(Block.run_id == other)))
    assert len(columns_with(live, run)) > 5, "there is something to forget"
    with live.database.transaction() as session:
        record(session, utcnow(), "info", "last", "that which happened last is of the run", run_id=run)
    newest = live.operator.get("/events", limit=1)[0]
    assert newest["code"] == "last"
    assert operator(live).post(f"/runs/{run}/delete").status_code == 204
    told = live.operator.get("/events", limit=1)[0]
    assert told["code"] == "run_deleted"
    assert told["id"] > newest["id"], "who goes on by id hears of it"
    assert columns_with(live, run) == set()
    assert columns_with(live, other) == before
    refused(operator(live).get(f"/runs/{run}"), 404, "not_found")
    assert any(e["code"] == "run_deleted" and run in e["message"] for e in live.operator.every("/events"))
    assert any(a["act"].endswith("/delete") and run in a["subject"] for a in live.operator.every("/audit"))
    with live.database.transaction() as session:  # an answer to an agent that ends only now
        ledgers.count(session, run, 0, agent, "shard", 10)
    assert columns_with(live, run) == set()
    now = utcnow()
    for later in (timedelta(), YEAR):
        tidy(live.settings, live.database, live.store, now + later)
    assert own, "the two had other rows, so other blocks"
    assert not any(live.store.has(digest) for digest in own)
    assert all(live.store.has(digest) for digest in digests - own)


def test_a_run_that_somebody_is_at_stays(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    refused(operator(live).post(f"/runs/{run}/delete"), 409, "run_not_over")
    run_id = live.operator.get(f"/runs/{run}")["id"]
    held = hand.take(run)
    live.operator.post(f"/runs/{run}/cancel")
    refused(operator(live).post(f"/runs/{run}/delete"), 409, "run_busy")
    with live.database.transaction() as session:
        session.execute(
            update(Assignment).where(Assignment.id == held.assignment_id).values(lease_expires_at=utcnow() - timedelta(hours=1))
        )
        job = session.scalars(select(Job).where(Job.subject == run_id)).first()
        assert job is not None
        before, job.state = job.state, JobState.RUNNING
    refused(operator(live).post(f"/runs/{run}/delete"), 409, "run_busy")
    with live.database.transaction() as session:
        session.get_one(Job, job.id).state = before
    assert operator(live).post(f"/runs/{run}/delete").status_code == 204


def test_a_model_that_runs_are_of_stays(live: LiveCoordinator, bert: Path, hand: Hand) -> None:
    live.add_model(name := fresh("model"), bert)
    model = live.operator.get(f"/models/{name}")
    run = ended(live, name, hand)
    said = refused(operator(live).post(f"/models/{name}/delete"), 409, "model_in_use")
    assert live.operator.get(f"/runs/{run}")["name"] in said.message
    live_runs = live.create_run(run_file(name, [hand]))["id"]
    assert operator(live).post(f"/runs/{run}/delete").status_code == 204
    refused(operator(live).post(f"/models/{name}/delete"), 409, "model_in_use")
    live.operator.post(f"/runs/{live_runs}/cancel")
    assert operator(live).post(f"/runs/{live_runs}/delete").status_code == 204
    assert operator(live).post(f"/models/{name}/delete").status_code == 204
    assert columns_with(live, model["id"]) == set()
    live.add_model(name, bert)


def test_an_agent_that_has_worked_stays_as_long_as_its_runs(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    hand.deliver(hand.take(run))
    run = live.operator.get(f"/runs/{run}")["id"]
    idle = Hand(live)
    idle_id = id_of(live, idle)
    for one in (hand, idle):
        refused(operator(live).post(f"/agents/{one.name}/delete"), 409, "agent_in_use")
        live.operator.post(f"/agents/{one.name}/revoke")
    assert operator(live).post(f"/agents/{idle.name}/delete").status_code == 204
    assert columns_with(live, idle_id) == set()
    live.enrol(idle.name)  # the name is free
    refused(operator(live).post(f"/agents/{hand.name}/delete"), 409, "agent_in_use")
    live.operator.post(f"/runs/{run}/cancel")
    assert operator(live).post(f"/runs/{run}/delete").status_code == 204
    assert operator(live).post(f"/agents/{hand.name}/delete").status_code == 204


def test_runs_are_told_of_without_an_agent_that_was_deleted(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    """It took part, but had no visit yet."""
    run = start_run(live, model, [hand, other])
    held = hand.take(run)
    live.operator.post(f"/agents/{other.name}/revoke")
    assert operator(live).post(f"/agents/{other.name}/delete").status_code == 204
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    for part in ("readiness", "assignments", "rounds", "explanation", "timeline", "blocks"):
        live.operator.get(f"/runs/{run}/{part}")
    hand.deliver(held)


def test_runs_that_ended_long_ago_are_deleted_where_that_is_wanted(live: LiveCoordinator, model: str, hand: Hand) -> None:
    old, new = ended(live, model, hand), ended(live, model, hand)
    going_on = start_run(live, model, [hand])
    with live.database.transaction() as session:
        session.execute(update(Run).where(Run.id == old).values(ended_at=utcnow() - YEAR))
    tidy(live.settings, live.database, live.store, utcnow())
    assert live.operator.get(f"/runs/{old}")["id"] == old, "by itself nothing is deleted"
    tidy(live.settings.model_copy(update={"keep_runs_s": 30 * 86400.0}), live.database, live.store, utcnow())
    refused(operator(live).get(f"/runs/{old}"), 404, "not_found")
    assert {live.operator.get(f"/runs/{run}")["id"] for run in (new, going_on)} == {new, live.operator.get(f"/runs/{going_on}")["id"]}


def test_of_the_runs_that_ended_long_ago_one_is_read_at_a_time(live: LiveCoordinator, model: str, hand: Hand) -> None:
    busy, *old = [ended(live, model, hand) for _ in range(3)]
    with live.database.transaction() as session:
        session.execute(update(Run).where(Run.id.in_([busy, *old])).values(ended_at=utcnow() - YEAR))
        session.execute(update(Run).where(Run.id == busy).values(ended_at=utcnow() - 2 * YEAR))
        session.execute(
            update(Job)
            .where(Job.id == select(func.max(Job.id)).where(Job.subject == busy).scalar_subquery())
            .values(state=JobState.RUNNING)
        )
    read, before = list[str](), utcnow() - YEAR / 2
    listened = (Run, "load", lambda run, _: read.append(run.id))
    event.listen(*listened)
    for deleted in (min(old), max(old), None):
        read.clear()
        with live.database.transaction() as session:
            assert delete_ended_run(session, before, utcnow()) == (deleted is not None)
        assert [run for run in (busy, deleted) if run] == read
    event.remove(*listened)
    with live.database.transaction() as session:
        session.execute(update(Job).where(Job.subject == busy, Job.state == JobState.RUNNING).values(state=JobState.DONE))
        assert delete_ended_run(session, before, utcnow())


def test_the_command_asks_before_something_is_gone(live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCOORD_URL", live.url)
    monkeypatch.setenv("FEDCOORD_OPERATOR_KEY", live.operator_key)
    run = ended(live, model, hand)
    asked = CliRunner().invoke(app, ["run", "delete", run], input="n\n")
    assert (asked.exit_code, "will be gone" in asked.output) == (1, True)
    unheard = CliRunner().invoke(app, ["run", "delete", run], input="")
    assert (unheard.exit_code, "'--yes': nobody is there to answer" in unheard.output) == (2, True), unheard.output
    assert live.operator.get(f"/runs/{run}")["id"] == run
    done = CliRunner().invoke(app, ["run", "delete", run, "--yes", "--json"])
    assert (done.exit_code, '"deleted": "run"' in done.output) == (0, True), done.output


def test_of_several_runs_of_a_name_none_is_guessed(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = ended(live, model, hand)
    name = live.operator.get(f"/runs/{run}")["name"]
    spec = run_file(model, [hand]) | {"name": name}
    newer = live.create_run(spec)["id"]
    live.operator.post(f"/runs/{newer}/cancel")
    refused(operator(live).post(f"/runs/{name}/delete"), 409, "run_name_shared")
    assert operator(live).post(f"/runs/{newer}/delete").status_code == 204
    assert operator(live).post(f"/runs/{name}/delete").status_code == 204
    refused(operator(live).get(f"/runs/{run}"), 404, "not_found")
