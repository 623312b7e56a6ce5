"""Heavy work outside the web process: done again after a death, paused for when it fails, and never half-applied."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

import fedcybgd.coordinator.engine.admit
import fedcybgd.coordinator.engine.apply
import fedcybgd.coordinator.engine.export
import fedcybgd.coordinator.engine.import_model
import fedcybgd.coordinator.storage.full
from fedcybgd.coordinator.db.models import EnrolmentToken, Event, Job
from fedcybgd.coordinator.storage import BlobMissing
from fedcybgd.coordinator.storage.local import LocalBlobWriter
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, fresh, last_visit, operator, refused, settled, start_run, state_of, versions, wire

pytestmark = pytest.mark.database_decides

Coordinators = Callable[..., LiveCoordinator]


def job_states(live: LiveCoordinator, kind: str) -> list[tuple[str, int]]:
    with live.database.reading() as session:
        return [(job.state, job.tries) for job in session.scalars(select(Job).where(Job.kind == kind))]


class Stuck:
    """An engine function that begins, and never ends before `let_go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.began, self._gone = threading.Event(), threading.Event()
        self._patch, self._module, self._name, self._real = monkeypatch, module, name, getattr(module, name)
        monkeypatch.setattr(module, name, self._stuck)

    def _stuck(self, *_: Any) -> Any:
        self.began.set()
        self._gone.wait(60)
        raise RuntimeError("the process of this job is no more")

    def mend(self) -> None:
        self._patch.setattr(self._module, self._name, self._real)

    def let_go(self) -> None:
        self._gone.set()


def test_an_import_that_ran_when_the_coordinator_died_is_done_again(
    coordinators: Coordinators, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = coordinators()
    stuck = Stuck(monkeypatch, fedcybgd.coordinator.engine.import_model, "import_model")
    first.operator.post("/models", {"name": "bert", "source": str(bert)})
    assert stuck.began.wait(10)
    assert job_states(first, "import") == [("running", 1)]
    first.stop()
    stuck.mend()
    second = coordinators()
    wait_for(lambda: second.operator.get("/models/bert")["state"] == "ready")
    assert job_states(second, "import") == [("done", 2)]
    assert len(second.operator.get("/models/bert")["blocks"]) == 4
    stuck.let_go()


def test_a_delta_that_was_being_applied_when_the_coordinator_died_is_applied_once(
    coordinators: Coordinators, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = coordinators()
    first.add_model("bert", bert)
    hand = Hand(first)
    run = start_run(first, "bert", [hand])
    stuck = Stuck(monkeypatch, fedcybgd.coordinator.engine.apply, "apply")
    receipt = hand.deliver(hand.take(run))
    assert stuck.began.wait(10)
    first.stop()
    stuck.mend()
    second = coordinators()
    view = settled(second, run)
    assert (view["rounds_done"], versions(second, run)["layers.0"], versions(second, run)["layers.1"]) == (1, 1, 0)
    assert second.operator.get(f"/runs/{run}/assignments")[0]["delta_digest"] == receipt.digest
    assert job_states(second, "apply") == [("done", 2)]
    stuck.let_go()


def test_no_lease_ends_because_the_coordinator_was_away(coordinators: Coordinators, bert: Path) -> None:
    from datetime import timedelta

    from fedcybgd.coordinator.db.models import Assignment

    first = coordinators()
    first.add_model("bert", bert)
    hand = Hand(first)
    run = start_run(first, "bert", [hand])
    assignment = hand.take(run)
    first.stop()
    with first.database.transaction() as session:
        row = session.get_one(Assignment, assignment.assignment_id)
        assert row.lease_expires_at is not None
        row.lease_expires_at -= timedelta(hours=1)  # so long was it away
    second = coordinators()
    hand.http.base_url = second.url + "/v1"
    assert hand.renew(assignment).json()["go_on"] is True
    assert last_visit(second, run)["attempt"] == 1


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def told(live: LiveCoordinator) -> list[str]:
    with live.database.reading() as session:
        return list(session.scalars(select(Event.code).where(Event.code.like("disk_%")).order_by(Event.id)))


@pytest.mark.parametrize("module", [fedcybgd.coordinator.engine.apply, fedcybgd.coordinator.engine.admit])
def test_a_full_disk_is_waited_for_and_said(
    live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch, module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = start_run(live, model, [hand], schedule={"blocks": ["layers.0"]})
    blocks = state_of(live, run)["blocks"]
    with monkeypatch.context() as patch:
        patch.setattr(module, module.__name__.rpartition(".")[2], full)
        patch.setattr(fedcybgd.coordinator.storage.full, "_free", lambda _: 1000)
        hand.deliver(hand.take(run))
        wait_for(lambda: live.operator.get("/health")["full_disks"] == ["blobs"])
        view = live.operator.get(f"/runs/{run}")
        assert (state_of(live, run)["blocks"], view["state"], view["rounds_done"]) == (blocks, "running", 0)
    view = settled(live, run)
    assert (view["state"], view["rounds_done"]) == ("completed", 1)
    assert versions(live, run)["layers.0"] == 1
    wait_for(lambda: live.operator.get("/health")["full_disks"] == [])
    wait_for(lambda: told(live)[-2:] == ["disk_full", "disk_free"])
    # At once, whatever can be written; and as an event, once that is.
    for source in ("fedcoord.disk", "fedcoord.events"):
        assert len([r for r in caplog.records if r.name == source and "is full" in r.getMessage()]) <= 1
    assert not [record for record in caplog.records if record.exc_info and record.name == "fedcoord.jobs"]


def codes_of(live: LiveCoordinator, name: str) -> list[str]:
    with live.database.reading() as session:
        return list(session.scalars(select(Event.code).where(Event.message.contains(name)).order_by(Event.id)))


@pytest.mark.one_database
def test_a_model_for_which_there_is_no_room_lets_others_go_first_and_can_be_deleted(
    live: LiveCoordinator, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"name": fresh("large"), "source": str(bert)}

    def look(name: str = named["name"]) -> Any:
        return live.operator.get(f"/models/{name}")

    with monkeypatch.context() as patch:
        patch.setattr(fedcybgd.coordinator.storage.full, "_free", lambda _: 1000)
        live.operator.post("/models", named)
        wait_for(lambda: look()["reason"])
        assert look()["state"] == "adding"
        assert "and 1,000 are free" in look()["reason"]
        assert [one["code"] for one in live.operator.get("/status")["alarms"] if named["name"] in one["message"]] == ["models_wait"]
        live.operator.post("/models", {"name": (other := fresh("nowhere")), "source": "/no/such/directory"})
        wait_for(lambda: look(other)["state"] == "failed")
        wait_for(lambda: operator(live).post(f"/models/{named['name']}/delete").status_code == 204)  # not while it is tried again
        refused(operator(live).get(f"/models/{named['name']}"), 404, "not_found")
        live.operator.post("/models", named)
        wait_for(lambda: look()["reason"])
    wait_for(lambda: look()["state"] == "ready")
    assert look()["reason"] is None
    assert codes_of(live, named["name"])[:4] == ["disk_full", "model_deleted", "disk_full", "model_added"]


@pytest.mark.one_database
def test_a_model_that_no_disk_of_this_size_could_hold_is_refused(
    live: LiveCoordinator, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedcybgd.coordinator.storage.full, "_total", lambda _: 1000)
    live.operator.post("/models", {"name": (name := fresh("huge")), "source": str(bert)})
    wait_for(lambda: live.operator.get(f"/models/{name}")["state"] == "failed")
    assert "and its whole disk has 1,000" in live.operator.get(f"/models/{name}")["reason"]
    assert codes_of(live, name) == ["disk_too_small"]


def test_a_disk_that_fills_while_a_shard_is_written_leaves_no_half_of_one(
    live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    tensors = hand.delta(assignment)
    real, written = LocalBlobWriter.write, []

    def write(self: LocalBlobWriter, data: bytes) -> None:
        written.append(len(data))
        if len(written) > 3:
            self._file.close()
            full()
        real(self, data)

    before = {p for p in live.settings.blobs.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(LocalBlobWriter, "write", write)
        receipt = hand.deliver(assignment, tensors)
        wait_for(lambda: len(written) > 4)
        after = {p for p in live.settings.blobs.rglob("*") if p.is_file() and p.suffix != ".part"}
    assert {p.name for p in after - before} == {receipt.digest}
    assert settled(live, run)["rounds_done"] == 1


def test_an_engine_error_nobody_thought_of_pauses_the_run(
    live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(live, model, [hand])

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("nobody thought of this")

    with monkeypatch.context() as patch:
        patch.setattr(fedcybgd.coordinator.engine.apply, "apply", broken)
        hand.deliver(hand.take(run))
        wait_for(lambda: live.state_of(run) == "paused")
    assert "ZeroDivisionError: nobody thought of this" in live.operator.get(f"/runs/{run}")["reason"]
    assert "engine_failed" in events(live, run)
    live.operator.post(f"/runs/{run}/resume")
    assert settled(live, run)["rounds_done"] == 1


def test_an_export_that_fails_says_so_and_the_run_goes_on(
    live: LiveCoordinator, model: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(live, model, [hand])

    def missing(*_: Any) -> Any:
        raise BlobMissing("a shard of layers.0 is missing")

    with monkeypatch.context() as patch:
        patch.setattr(fedcybgd.coordinator.engine.export, "export", missing)
        export = live.operator.post(f"/runs/{run}/exports")["export_id"]
        settled(live, run)
    error = refused(operator(live).get(f"/runs/{run}/exports/{export}"), 409, "conflict")
    assert "is missing" in error.message
    assert "blob_missing" in events(live, run)
    assert live.operator.get(f"/runs/{run}")["state"] == "running"


def test_a_commit_that_fails_is_answered_as_a_failure(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FastAPI dependency that commits after the answer would say 201 here, and the caller would never try again."""
    commit = Session.commit

    def failing(self: Session) -> None:
        if (self.scalar(select(func.count()).select_from(EnrolmentToken)) or 0) > before:
            raise RuntimeError("the database is gone")
        commit(self)

    def tokens() -> int:
        with live.database.reading() as session:
            return session.scalar(select(func.count()).select_from(EnrolmentToken)) or 0

    before = tokens()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", failing)
        refused(wire(live, live.operator_key).post("/enrolment-tokens", json={}), 500, "internal_error")
    assert tokens() == before
    # The web server hangs up after an error that nobody thought of, so a new connection.
    assert wire(live, live.operator_key).post("/enrolment-tokens", json={}).status_code == 201
    assert tokens() == before + 1
