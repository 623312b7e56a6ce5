"""The shards of a model are encoded in a job for each block: others go between them, and a failure or a death costs one."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

import fedcybgd.coordinator.engine.encode as engine
from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Block, Job
from fedcybgd.coordinator.domain.jobs.kinds import Lane
from fedcybgd.coordinator.domain.jobs.payloads import EncodePayload, EncodeResult, ExportPayload
from fedcybgd.coordinator.domain.jobs.registry import Done
from fedcybgd.coordinator.jobs.patience import Patience
from fedcybgd.coordinator.jobs.taking import Queue
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.shared.contract.manifests import FileRef
from tests.support.live import LiveCoordinator
from tests.support.migrated import begin_with_schema
from tests.support.processes import wait_for
from tests.support.visits import Hand, start_run

INT8 = {"compression": {"policy": "int8"}, "delta": {"codec": "int8"}}


class Gate:
    """Before an engine encodes it waits until it is opened; and fails as long as it is told to."""

    def __init__(self) -> None:
        self.opened, self.began, self.broken = threading.Event(), threading.Event(), False


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made, encode = Gate(), engine.encode

    def wait(*arguments: Any) -> Any:
        made.began.set()
        assert made.opened.wait(60)
        if made.broken:
            raise OSError("the disk has gone")
        return encode(*arguments)

    monkeypatch.setattr(engine, "encode", wait)
    yield made
    made.opened.set()


@pytest.fixture
def alone(coordinators: Callable[..., LiveCoordinator], bert: Path) -> LiveCoordinator:
    live = coordinators()
    live.add_model("bert", bert)
    return live


def encode_jobs(live: LiveCoordinator) -> list[Job]:
    with live.database.reading() as session:
        return list(session.scalars(select(Job).where(Job.kind == "encode").order_by(Job.created_at, Job.id)))


def states(live: LiveCoordinator) -> list[str]:
    return sorted(job.state for job in encode_jobs(live))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_run_waits_for_the_last_block_and_each_is_a_job(alone: LiveCoordinator, gate: Gate) -> None:
    hand = Hand(alone)
    run_name = start_run(alone, "bert", [hand], **INT8)
    assert gate.began.wait(20)
    wanted = [{ref.block for ref in job.payload.wanted} for job in encode_jobs(alone) if isinstance(job.payload, EncodePayload)]
    with alone.database.reading() as session:
        blocks = {(name,) for name in session.scalars(select(Block.name))}
    assert {tuple(sorted(names)) for names in wanted} == blocks
    assert len(wanted) == len(blocks) + 1, "and the second round's is packed exact in one more"
    waits: Any = alone.operator.get(f"/runs/{run_name}/explanation")
    told = [wait["text"] for wait in waits["waits"] if wait["kind"] == "job"]
    assert [f"{len(wanted) - 1} jobs `encode` are queued" in text for text in told] == [False, True], "however many there are"
    payload, run = encode_jobs(alone)[0].payload, encode_jobs(alone)[0].subject
    assert isinstance(payload, EncodePayload)
    with alone.database.transaction() as session:
        done = Done(run, payload, EncodeResult(shards=[]), utcnow())
        shards.encoded(session, done)
        assert signals.of(session).offered == set()
        session.execute(update(Job).where(Job.kind == "encode").values(state="done"))
        shards.encoded(session, done)
        assert len(signals.of(session).offered) == 1
        session.rollback()
    gate.opened.set()
    assert hand.claim("*", 30) is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_where_one_cannot_be_made_the_others_are_not_tried_and_all_are_asked_for_anew(alone: LiveCoordinator, gate: Gate) -> None:
    gate.broken = True
    hand = Hand(alone)
    run = start_run(alone, "bert", [hand], **INT8)
    gate.opened.set()
    view = wait_for(lambda: (found := alone.operator.get(f"/runs/{run}"))["state"] == "paused" and found)  # type: ignore[index]
    assert "the disk has gone" in view["reason"]
    wait_for(lambda: not {"queued", "running"} & set(states(alone)))
    assert set(states(alone)) == {"failed", "skipped"}
    assert states(alone).count("failed") == 1
    assert sum(event["code"] == "engine_failed" for event in view["events"]) == 1
    gate.broken = False
    alone.operator.post(f"/runs/{run}/resume")
    assert hand.claim(run, 30) is not None
    assert "failed" in states(alone), "what has failed stays so"


@pytest.mark.database_decides
def test_between_two_blocks_something_else_is_done(database_url: str) -> None:
    begin_with_schema(database_url)
    database = Database(database_url)
    now = utcnow()
    kinds = ["encode", "encode", "encode", "export", "export"]
    with database.transaction() as session:
        for number, kind in enumerate(kinds):
            payload = (
                EncodePayload(config=FileRef(name="config.json", digest="0" * 64, size=2), task="causal-lm", wanted=[])
                if kind == "encode"
                else ExportPayload(after_rounds=0, task="causal-lm", files=[], blocks=[])
            )
            session.add(
                Job(
                    id=f"job_{number}", kind=kind, lane=Lane.QUICK, subject="run_a", payload=payload, state="queued", tries=0,
                    created_at=now + timedelta(seconds=number),
                )
            )  # fmt: skip
    queue = Queue(Lane.QUICK, database, Patience("test"), "rep_a")
    taken = [queue.take() for _ in kinds]
    assert [job and job.id for job in taken] == ["job_0", "job_3", "job_1", "job_4", "job_2"]
    assert queue.take() is None
    database.close()
