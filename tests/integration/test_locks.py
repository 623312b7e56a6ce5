"""Rows that many refer to are changed without waiting for those who refer to them: PostgreSQL locks them for every reference."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment, Readiness, Run
from fedcybgd.coordinator.services.agents import arrival
from fedcybgd.coordinator.services.records import manifests
from fedcybgd.coordinator.services.upkeep import quarantine
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.manifests import Manifest
from tests.support.live import LiveCoordinator
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for
from tests.support.visits import Hand, start_run


@pytest.fixture
def impatient(postgres: PostgresServer) -> Iterator[Database]:
    """Who waits for a lock for longer than a second gets an error."""
    database = Database(postgres.database_with_schema() + "?options=-c%20lock_timeout%3D1s")
    yield database
    database.close()


def test_a_manifest_is_given_to_the_next_while_another_changes_a_visit_that_has_it(impatient: Database) -> None:
    manifest = Manifest(files=[], blocks=[])
    with impatient.transaction() as session:
        manifests.store(session, manifest)
    with impatient.transaction() as referring, impatient.transaction() as session:
        referring.execute(text("SELECT 1 FROM manifest FOR KEY SHARE"))
        assert manifests.store(session, manifest) == manifest.digest


def test_an_agent_is_let_out_of_quarantine_and_comes_anew_while_its_rows_are_written(impatient: Database) -> None:
    with impatient.transaction() as session:
        session.add(
            Agent(id="agt_1", name="one", key_hash="a" * 64, state="active", device=DeviceInfo(name="d", cores=1, memory_bytes=1), version="1",
                  limits=DeclaredLimits(), enrolled_at=utcnow(), quarantined_until=utcnow() - timedelta(seconds=1))
        )  # fmt: skip
    with impatient.transaction() as referring:
        referring.execute(text("SELECT 1 FROM agent FOR KEY SHARE"))
        with impatient.transaction() as session:
            quarantine.end(session, utcnow())
        arrival.came(impatient, "agt_1", "a" * 16, DeclaredLimits(), utcnow, lambda _: None)
    with impatient.reading() as session:
        agent = session.get_one(Agent, "agt_1")
        assert agent.quarantined_until is None
        assert agent.daemon == "a" * 16


def test_an_agent_that_was_passed_over_comes_while_its_run_is_held(impatient: Database) -> None:
    """Rows of runs are locked before those of agents: whoever comes locks itself, and leaves its run to its claim."""
    small, large = DeclaredLimits(memory_bytes=1), DeclaredLimits(memory_bytes=2)
    with impatient.transaction() as session:
        session.add_all(
            Agent(id=f"agt_{n}", name=f"{n}", key_hash=f"{n}" * 64, state="active", device=DeviceInfo(), version="1", limits=small,
                  enrolled_at=utcnow())
            for n in range(2)
        )  # fmt: skip
        session.execute(text("SET LOCAL session_replication_role = replica"))  # there is no run that it refers to
        session.add(Readiness(agent_id="agt_0", run_id="run_1", fits=None, exact=False, refused=["asg_1"], at=utcnow()))
    with impatient.transaction() as acting:
        acting.execute(text("LOCK TABLE run"))
        passed_over, other = (arrival.came(impatient, f"agt_{n}", "a" * 16, large, utcnow, lambda _: None) for n in range(2))
    assert (passed_over.limits, other.limits) == (small, large)
    assert passed_over.daemon == other.daemon == "a" * 16


def test_a_run_that_somebody_holds_holds_up_no_other(postgres: PostgresServer, bert: Path, tmp_path: Path) -> None:
    """An operator's act locks a run: leases of others end in time, and nobody waits for two runs at once."""
    live = LiveCoordinator(tmp_path, postgres.new_database())
    try:
        live.add_model("bert", bert)
        hands = [Hand(live), Hand(live)]
        held = sorted(hand.take(start_run(live, "bert", [hand])).assignment_id for hand in hands)

        def states() -> list[str]:
            with live.database.reading() as session:
                return [session.get_one(Assignment, one).state for one in held]

        with live.database.transaction() as acting:
            acting.get_one(Run, acting.get_one(Assignment, held[0]).run_id, with_for_update=True)
            with live.database.transaction() as session:
                for one in held:
                    session.get_one(Assignment, one).lease_expires_at = utcnow() - timedelta(seconds=1)
            wait_for(lambda: states() == ["leased", "pending"])
        wait_for(lambda: states() == ["pending", "pending"])
    finally:
        live.stop()
