"""Manifests that were in each assignment are stored once; what nobody has loses its own."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import open_engine
from fedcybgd.coordinator.db.models import Assignment, Job
from tests.migrations.test_migrations import AT, DIGEST, MANIFEST, TRAIN, everything, fill_0001

pytestmark = pytest.mark.database_decides
BEFORE, AFTER = "0009", "0010"
OTHER = MANIFEST.replace('"version": 1', '"version": 2')
STATES = {"leased": MANIFEST, "submitted": MANIFEST, "accepted": OTHER, "pending": MANIFEST}


@pytest.fixture
def filled(database_url: str) -> Iterator[Engine]:
    """A database of the schema before, with an assignment in each of these states beside those of the first schema."""
    engine = open_engine(database_url)
    migrate.upgrade(engine, "0001")
    fill_0001(engine)
    migrate.upgrade(engine, BEFORE)
    with engine.begin() as connection:
        for state, manifest in STATES.items():
            values = {
                "id": f"asg_{state}", "run_id": "run_r", "round": 1, "seat": 0, "blocks": '["layers.1"]', "state": state, "attempt": 1, "failures": 0,
                "excluded": "[]", "agent_id": "agt_a", "waiting_since": AT, "manifest": manifest, "train": TRAIN, "applied": False,
            }  # fmt: skip
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO assignment ({', '.join(values)}) VALUES ({marks})"), values)
        connection.execute(
            text(
                "INSERT INTO job (id, kind, lane, subject, payload, state, tries, cpu_s, created_at) "
                "VALUES ('job_1', 'import', 'slow', 'mod_m', :payload, 'queued', 0, 0, :at)"
            ),
            {"payload": '{"source": "/nowhere"}', "at": AT},
        )
    yield engine
    engine.dispose()


def test_the_same_manifest_is_stored_once_and_what_nobody_has_is_gone(filled: Engine) -> None:
    migrate.upgrade(filled)
    with Session(filled) as session:
        found = {state: session.get_one(Assignment, f"asg_{state}") for state in STATES}
        digests = {state: row.manifest_digest for state, row in found.items()}
        assert digests["pending"] is None
        assert digests["leased"] == digests["submitted"] != digests["accepted"]
        assert [block.version for block in found["leased"].manifest.blocks] == [1]
        assert [block.version for block in found["accepted"].manifest.blocks] == [2]
        assert [file.digest for file in found["submitted"].manifest.files] == [DIGEST]
        assert session.scalar(text("SELECT count(*) FROM manifest")) == 2
        assert session.get_one(Job, "job_1").payload.model_dump()["source"] == "/nowhere"


def test_down_and_up_again_keeps_what_was_given(filled: Engine) -> None:
    migrate.upgrade(filled, AFTER)
    first = everything(filled)
    with filled.begin() as connection:
        connection.execute(text("UPDATE job SET payload = NULL"))
    migrate.downgrade(filled, BEFORE)
    with filled.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM assignment WHERE manifest IS NULL")) == 0
        assert connection.scalar(text("SELECT count(*) FROM job WHERE payload IS NULL")) == 0
    migrate.upgrade(filled, AFTER)
    again = everything(filled)
    assert {table: again[table] for table in ("assignment", "manifest")} == {table: first[table] for table in ("assignment", "manifest")}
