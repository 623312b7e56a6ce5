"""What is asked of the database does not grow with the blocks of a model or of a wave, and what is kept does not grow with what is over."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment, EncodedShard, Job, Patch, StoredManifest
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.coordinator.services.operate import steer
from fedcybgd.coordinator.services.path import claim, lease
from fedcybgd.coordinator.services.upkeep import retention, standstill
from fedcybgd.coordinator.sweeper import shorten
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.manifests import BlobRef, PatchRef
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.statements import statements
from tests.support.visits import Hand, run_file, settled

ALL = {"blocks": ["embeddings", "layers", "pooler"], "agents": "fixed"}


@pytest.fixture
def small(coordinators: Callable[..., LiveCoordinator], bert: Path) -> LiveCoordinator:
    live = coordinators(sweep_every_s=3600)
    live.add_model("bert", bert)
    return live


def id_of(live: LiveCoordinator, hand: Hand) -> str:
    with live.database.reading() as session:
        return session.scalars(select(Agent.id).where(Agent.name == hand.name)).one()


def quiet(live: LiveCoordinator) -> None:
    def over() -> bool:
        with live.database.reading() as session:
            return session.scalar(select(Job.id).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING))).limit(1)) is None

    wait_for(over, limit=30)


def begun(live: LiveCoordinator, hands: list[Hand], **schedule: Any) -> tuple[dict[str, Any], int]:
    """A run that is started by hand, and the statements that its start took."""
    run = live.create_run(run_file("bert", hands, schedule={**ALL, **schedule}))
    quiet(live)
    with statements(live, mine=True) as found, live.database.transaction() as session:
        steer.start(session, run["id"], utcnow())
    return run, len(found)


def test_opening_a_wave_asks_as_often_as_opening_a_round_of_one(small: LiveCoordinator) -> None:
    hands = [Hand(small) for _ in range(4)]
    one, few = begun(small, hands)
    small.operator.post(f"/runs/{one['id']}/cancel")
    wave, many = begun(small, hands, wave=4)
    with small.database.reading() as session:
        pending = session.scalars(select(Assignment).where(Assignment.run_id == wave["id"])).all()
    assert len(pending) == 4
    assert many <= few
    # Nobody has them, so nothing was given to anybody.
    assert {a.manifest_digest for a in pending} == {None}


def test_a_start_a_lease_and_a_look_after_a_wave_ask_little(small: LiveCoordinator) -> None:
    hands = [Hand(small) for _ in range(4)]
    created = small.create_run(run_file("bert", hands, schedule=ALL))
    quiet(small)
    with statements(small) as found:
        small.operator.post(f"/runs/{created['id']}/start")
    assert len(found) <= 33, found  # the key is looked up once; 15 are of the view that is answered
    small.operator.post(f"/runs/{created['id']}/cancel")
    run, _ = begun(small, hands, wave=4)
    quiet(small)
    with statements(small, mine=True) as found, small.database.reading() as session:
        assert standstill.to_look_after(session, utcnow() + timedelta(minutes=1)) == []
    assert len(found) <= 6, found  # two questions of one run: is it stuck, and what does it say
    with statements(small, mine=True) as found, small.database.transaction() as session:
        got = claim.claim(session, id_of(small, hands[0]), ClaimRequest(runs=["*"]), utcnow())
    assert isinstance(got, lease.Leased)
    assert got.assignment.run_id == run["id"]
    assert len(found) <= 23, found


def test_patches_of_all_shards_are_found_in_a_few_queries_and_are_the_cheapest_way_back(small: LiveCoordinator) -> None:
    def digest(word: str) -> str:
        return (word.encode().hex() + "0" * 64)[:64]

    made, expected = {}, {}
    with small.database.transaction() as session:
        for number in range(40):
            target = digest(f"{number}/0")
            packed = BlobRef(digest=digest(f"p{number}"), size=1000)
            made[target] = shards.EncodedRef(source=digest(f"s{number}"), codec="exact", digest=target, size=2000, packed=packed)
            for step in range(number % 7):
                for base, size in ((f"{number}/{step + 1}", 150), (f"{number}/{step + 1}x", 150 + number)):
                    patch = {"base": digest(base), "kind": "delta", "digest": digest(f"d{base}"), "size": size, "weight": 1.0}
                    session.add(Patch(target=digest(f"{number}/{step}"), **patch))
            # A way that costs as much as the whole is none; and no way has more than four steps.
            expected[target] = [digest(f"{number}/{step + 1}") for step in range(min(number % 7, 4))]
        expensive = digest("dear/0")
        made[expensive] = made[digest("0/0")].model_copy(update={"digest": expensive})
        session.add(Patch(target=expensive, base=digest("b"), kind="delta", digest=digest("d"), size=1000, weight=1.0))
        expected[expensive] = []
    with small.database.reading() as session, statements(small, mine=True) as found:
        ways = shards._ways(session, {target: ref.packed.size for target, ref in made.items()}, "run", "agent", others=True)
    assert {target: [step.base for step in steps] for target, steps in ways.items()} == expected
    assert all(isinstance(step, PatchRef) for steps in ways.values() for step in steps)
    assert len([s for s in found if s.startswith("SELECT")]) <= 4 + 1, "and what the agent got last, where there is a choice"


def test_what_is_over_for_long_keeps_its_facts_alone_and_the_run_goes_on(small: LiveCoordinator) -> None:
    hand = Hand(small)
    run = small.create_run(run_file("bert", [hand], schedule={**ALL, "blocks": ["layers"], "cycles": 2}), start=True)
    for _ in range(2):
        hand.deliver(hand.take(run["name"]))
    quiet(small)
    held = hand.take(run["name"])
    with small.database.transaction() as session:
        failed = Job(
            id="job_0000000000000001", kind=JobKind.APPLY, lane="quick", subject=run["id"], state=JobState.FAILED, tries=3, created_at=utcnow(),
            payload_json={"needed": "when it is resumed"}, ended_at=utcnow(),
        )  # fmt: skip
        session.add(failed)
        before = {job.id: (job.kind, job.state, job.result_json) for job in session.scalars(select(Job))}
        assert session.scalar(select(func.count()).select_from(StoredManifest)) == 3
    shorten(small.settings, small.database, utcnow() + timedelta(seconds=small.settings.keep_payloads_s - 60))
    with small.database.reading() as session:
        assert session.scalar(select(func.count()).where(Job.payload_json.is_(None))) == 0, "not yet"
    shorten(small.settings, small.database, utcnow() + timedelta(seconds=small.settings.keep_payloads_s + 60))
    with small.database.reading() as session:
        jobs = session.scalars(select(Job)).all()
        assert {job.id: (job.kind, job.state, job.result_json) for job in jobs} == before
        assert {job.id for job in jobs if job.payload_json is not None} == {"job_0000000000000001"}
        visits = session.scalars(select(Assignment).order_by(Assignment.round)).all()
        assert [v.manifest_digest is not None for v in visits] == [False, False, True], "what somebody holds is kept"
        assert all(v.metrics is not None and v.delta_digest is not None for v in visits[:2])
        assert session.scalar(select(func.count()).select_from(StoredManifest)) == 1
    with small.database.transaction() as session:
        session.execute(update(Job).where(Job.id == "job_0000000000000001").values(kind=JobKind.EXPORT))
    hand.deliver(held)
    hand.deliver(hand.take(run["name"]))
    assert settled(small, run["id"])["state"] == "completed"


def test_old_rows_are_shortened_some_at_a_time(small: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "TOGETHER", 3)
    with small.database.transaction() as session:
        session.add_all(
            Job(id=f"job_{n:016x}", kind=JobKind.IMPORT, lane="slow", subject="mod_x", state=JobState.DONE, tries=1, created_at=utcnow(),
                ended_at=utcnow() - timedelta(days=30), payload_json={"source": "x"})
            for n in range(7)
        )  # fmt: skip
        session.flush()
        assert retention.shorten(session, utcnow() - timedelta(days=7)) == 3
    shorten(small.settings, small.database, utcnow())
    with small.database.reading() as session:
        assert session.scalar(select(func.count()).where(Job.payload_json.is_not(None), Job.subject == "mod_x")) == 0


def test_equal_manifests_are_stored_once(small: LiveCoordinator) -> None:
    hands = [Hand(small) for _ in range(4)]
    run, _ = begun(small, hands, wave=4)
    quiet(small)
    taken = [hand.take(run["name"]) for hand in hands]
    assert len({a.assignment_id for a in taken}) == 4
    with small.database.reading() as session:
        digests = session.scalars(select(Assignment.manifest_digest).where(Assignment.run_id == run["id"])).all()
        assert len(digests) == 4
        assert len(set(digests)) == len({a.manifest.model_dump_json() for a in taken})
        assert session.scalar(select(func.count()).select_from(StoredManifest)) == len(set(digests))
        assert session.scalar(select(func.count()).select_from(EncodedShard)) is not None
