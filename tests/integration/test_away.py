"""A coordinator that is away for longer than a week: deltas wait, go on at their byte, and are taken."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from fedcybgd.agent.client import Client
from fedcybgd.coordinator.db.base import Base, UtcDateTime, utcnow
from fedcybgd.coordinator.sweeper import UPLOAD_KEPT_S, tidy
from fedcybgd.shared.contract.words import API
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.visits import run_file, sweep

AWAY = timedelta(days=9)


class Died(BaseException):
    pass


def age(live: LiveCoordinator) -> None:
    """As if the coordinator had stopped so long ago: every time that it wrote down, and every file of its home."""
    with live.database.transaction() as session:
        for table in Base.metadata.sorted_tables:
            times = [column for column in table.columns if isinstance(column.type, UtcDateTime)]
            for row in session.execute(select(*table.primary_key.columns, *times)).mappings().all() if times else ():
                older = {column.name: row[column.name] - AWAY for column in times if row[column.name] is not None}
                this = [column == row[column.name] for column in table.primary_key.columns]
                if older:
                    session.execute(table.update().where(*this).values(older))
    for path in live.settings.home.rglob("*"):
        if path.is_file() and ".db" not in path.name:
            os.utime(path, (time.time() - AWAY.total_seconds(),) * 2)


def test_a_delta_waits_for_more_than_a_week_and_goes_on_at_its_byte(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = coordinators(keep_blobs_s=60)
    live.add_model("bert", bert)
    agent = LightAgent(live, tmp_path / "agent")
    run = str(live.create_run(run_file("bert", [], delta={"codec": "float32"}) | {"agents": [agent.name]}, start=True)["name"])
    assignment = agent.claim(run, wait=10)
    assert assignment is not None
    whole = Client.upload

    def half(client: Client, assignment_id: str, digest: str, path: Path, offset: int, size: int) -> Any:
        whole(client, assignment_id, digest, path, offset, size // 2)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Client, "upload", half)
        with pytest.raises(Died):
            agent.visit(assignment)
    [delta] = agent.home.glob("outbox/*.safetensors")
    size, sent = delta.stat().st_size, agent.client.bytes_sent
    age(live)
    live.stop()
    for path in agent.home.rglob("*"):
        os.utime(path, (time.time() - AWAY.total_seconds(),) * 2)

    live = coordinators(keep_blobs_s=60)
    sweep(live)
    live.app.state.uploads.sweep(UPLOAD_KEPT_S)
    tidy(live.settings, live.database, live.store, utcnow())
    agent.client._http.base_url = live.url + API
    agent.start()
    again = agent.claim(run)
    assert again is not None
    assert again.assignment_id == assignment.assignment_id
    agent.visit(again)
    assert agent.trainer.requests == [], "it was not trained again"
    assert agent.client.bytes_sent - sent == size - size // 2
