"""A backup that is made while a run goes on is complete: restored, every blob is there, and the run goes on."""

import os
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import make_url

from fedcybgd.coordinator.backup import BackupFailed, backup
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.services.upkeep import garbage
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.words import API
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.postgres import PostgresServer, find_program
from tests.support.visits import run_file, settled

pytestmark = pytest.mark.database_decides

INT8 = {"compression": {"policy": "int8"}, "delta": {"codec": "int8"}, "schedule": {"cycles": 3}}


def restored_url(home: Path, source: str, request: pytest.FixtureRequest) -> str:
    if not (home / "coordinator.dump").exists():
        return f"sqlite:///{home / 'coordinator.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    program = find_program("pg_restore")
    assert program is not None
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run([str(program), "--no-owner", "--dbname", plain, str(home / "coordinator.dump")], check=True, capture_output=True)
    return url


def test_a_backup_of_a_busy_coordinator_is_restored_and_goes_on(
    coordinators: Callable[..., LiveCoordinator], database_url: str, bert: Path, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if database_url.startswith("postgresql"):
        program = find_program("pg_dump")
        if program is None:
            pytest.skip("pg_dump was not found")
        monkeypatch.setenv("PATH", str(Path(program).parent), prepend=os.pathsep)
    live = coordinators()
    live.add_model("bert", bert)
    agent = LightAgent(live, tmp_path / "agent")
    run = live.create_run(run_file("bert", [], **INT8) | {"agents": [agent.name]}, start=True)["name"]

    def rounds(number: int) -> None:
        for _ in range(number):
            assignment = agent.claim(run, wait=10)
            assert assignment is not None
            agent.visit(assignment)
        live.operator.wait(lambda: live.operator.get(f"/runs/{run}"), lambda v: not v["pending_jobs"], every=0.05)

    def meanwhile(step: str) -> None:
        """Between the copy of the database and those of the blobs: all blocks change, and the collector would delete their old versions."""
        if step == "database":
            rounds(3)
            tidy(live.settings, live.database, live.store, utcnow())
            tidy(live.settings, live.database, live.store, utcnow() + timedelta(days=2))

    rounds(2)
    done = backup(live.settings, tmp_path / "restored", meanwhile)
    assert done.blobs == done.copied > 10
    assert backup(live.settings, tmp_path / "again").copied > 10
    assert backup(live.settings, tmp_path / "again").copied == 0
    assert live.operator.get(f"/runs/{run}")["rounds_done"] == 5
    live.stop()

    home = tmp_path / "restored"
    restored = LiveCoordinator(home, restored_url(home, database_url, request))
    try:
        assert restored.operator.get(f"/runs/{run}")["rounds_done"] == 2
        with restored.database.reading() as session:
            needed = garbage.needed(session, utcnow())
        assert all(digest_of_file(restored.store.path(digest)) == digest for digest in needed)
        assert "blobs_missing" not in [e["code"] for e in restored.operator.get("/status")["last_errors"]]
        agent.client._http.base_url = restored.url + API
        while restored.state_of(run) == "running":
            if (assignment := agent.claim(run, wait=0.3)) is not None:
                agent.visit(assignment)
        view = settled(restored, run)
        assert (view["state"], view["rounds_done"]) == ("completed", 6)
    finally:
        restored.stop()


def test_a_backup_says_what_it_lacks_and_so_does_the_coordinator_at_its_start(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path
) -> None:
    live = coordinators()
    model = live.add_model("bert", bert)
    spoilt, gone = (b["digest"] for b in live.operator.get("/models/bert")["blocks"][:2]) if model else ("", "")
    path = live.store.path(spoilt)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    live.store.delete(gone)
    with pytest.raises(BackupFailed) as failed:
        backup(live.settings, tmp_path / "backup")
    assert failed.value.detail["missing"] == sorted([spoilt, gone])
    assert "of model bert" in failed.value.message
    assert (tmp_path / "backup" / "blobs").is_dir(), "what there is is copied all the same"
    live.stop()
    again = coordinators()
    event = next(e for e in again.operator.get("/status")["last_errors"] if e["code"] == "blobs_missing")
    assert "of model bert" in event["message"]
    assert event["message"].startswith("2 blobs")
