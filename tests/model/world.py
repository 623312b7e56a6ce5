"""A small world: two agents, a wave of two blocks, two coordinator processes. A state is a database and what is under way outside of it.

The services are the real ones. The engine is played: a block's digest tells which deltas it is made of, so that the checks can read it.
Time is an event: everything happens at one moment, but a lease ends, a deadline passes or an owner is gone whenever the search wants it.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from fedcybgd.coordinator.db.base import Base, Database
from fedcybgd.coordinator.db.models import Agent, Assignment, Job, Run
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.jobs.lease import Hold
from fedcybgd.coordinator.domain.jobs.payloads import AdmitResult, ApplyPayload, ApplyResult, Change, RestorePayload, RestoreResult
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.operate import prepare, rollback, steer
from fedcybgd.coordinator.services.path import apply_round, claim, lease, submit
from fedcybgd.coordinator.services.path.claim import TurnedDown
from fedcybgd.coordinator.services.path.lease import Leased
from fedcybgd.coordinator.services.records import job_leases, jobs
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.assignments import DeltaSubmission, ReturnRequest
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import ShardRef
from tests.support import story
from tests.support.story import METRICS, Story

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("ann", "bob")
AGENTS = tuple(story._id("agt", name) for name in NAMES)
OWNERS = ("rep_one", "rep_two")
SPEC: dict[str, Any] = {
    "name": "run", "model": "small", "agents": list(NAMES), "task": {"kind": "text-classification", "labels": 3, "max_length": 32},
    "compression": {"policy": "none"}, "delta": {"codec": "float32"},
    "schedule": {"blocks": ["layers.0", "layers.1"], "always": ["head"], "wave": 2, "reassign_after_s": 0, "wave_deadline_s": 60},
}  # fmt: skip
MOST_ATTEMPTS, MOST_TRIES, MOST_REJECTIONS, MOST_LOST, MOST_UNDONE = 3, 2, 1, 1, 1
"""Bounds of the search: of leases of an assignment, of begun tries of a job; of rejections, lost deltas and acts that take a run back."""


@dataclass(frozen=True, order=True)
class Lease:
    """What an agent was told once, and may act upon at any later time, as often as it likes."""

    agent: str
    assignment: str
    attempt: int


@dataclass(frozen=True)
class Outside:
    """What is under way outside of the database."""

    leases: frozenset[Lease] = frozenset()
    holds: frozenset[Hold] = frozenset()
    rejected: int = 0
    lost: int = 0
    undone: tuple[str, ...] = ()
    """what the operator asked to be taken back"""


@dataclass(frozen=True)
class State:
    database: bytes
    outside: Outside


Event = tuple[str, *tuple[Any, ...]]
VISIT = re.compile(r"asg_[0-9a-f]{16}")


class World:
    def __init__(self, **schedule: Any) -> None:
        self._raw = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._raw.execute("PRAGMA page_size=512")  # a state is as large as its tables are many
        self.engine: Engine = create_engine("sqlite://", creator=lambda: self._raw, poolclass=StaticPool)
        event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        Base.metadata.create_all(self.engine)
        self.made_of: dict[str, tuple[str, frozenset[str]]] = {}
        """digest of a block → the digest before, and the deltas that were added"""
        self.start = self._begin(SPEC | {"schedule": SPEC["schedule"] | schedule})

    # ---- states ---------------------------------------------------------------------------------------------------------

    def save(self, outside: Outside) -> State:
        return State(self._raw.serialize(), outside)

    @contextmanager
    def at(self, state: State) -> Iterator[Session]:
        """The database as it was then, to be changed or looked at."""
        self._raw.deserialize(state.database)
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    def _begin(self, spec: dict[str, Any]) -> State:
        @contextmanager
        def transaction() -> Iterator[Session]:
            with Session(self.engine) as session:
                yield session
                session.commit()

        story.stage(cast(Database, SimpleNamespace(transaction=transaction)))
        with transaction() as session:
            for agent in session.scalars(select(Agent)):
                if agent.name not in NAMES:
                    session.delete(agent)
        with transaction() as session:
            played = cast(Any, object.__new__(Story))
            played.session, played.spec, played.told, played._ids = session, RunFile.model_validate(spec), {}, {}
            played._where, played._known = "", ()  # it is not compared with another
            run = prepare.create(session, played.spec, NOW)
            played._work()
            for agent in session.scalars(select(Agent)).all():
                readiness.row_of(session, run.id, agent.id, NOW).fits = True
            session.flush()
            steer.start(session, run.id, NOW)
            self._have_ready(played, session)
        return self.save(Outside())

    def _have_ready(self, played: Any, session: Session) -> None:
        """Every shard in the form in which it travels: making them is not what is looked at here."""
        for name in AGENTS:
            with session.begin_nested() as point:
                self._claim(session, name)
                asked = [{"kind": j.kind, "subject": j.subject, "payload_json": j.payload_json} for j in played._queued()]
                point.rollback()
            session.expire_all()
            for number, job in enumerate(asked):
                if job["kind"] == JobKind.ENCODE:
                    session.add(Job(id=f"job_{name}{number}", lane="quick", state="queued", tries=0, created_at=NOW, **job))
                    played._work()

    # ---- what can happen --------------------------------------------------------------------------------------------------

    def events(self, rows: "Rows", outside: Outside) -> list[Event]:
        """Everything that may happen next, within the bounds."""
        found: list[Event] = []
        held = {a.agent for a in rows.assignments.values() if a.state == "leased" and a.attempt < MOST_ATTEMPTS}
        free = any(a.state == "pending" and a.attempt < MOST_ATTEMPTS for a in rows.assignments.values())
        holders = {a.agent for a in rows.assignments.values() if a.state == "leased"}
        found += [("claim", agent) for agent in AGENTS if agent in held or (agent not in holders and free)]
        for known in sorted(outside.leases):
            row = rows.assignments[known.assignment]
            found.append(("submit", known))
            if row.state == "leased" and row.attempt < MOST_ATTEMPTS:
                found.append(("give_back", known))
        found += [("lapse", a.id) for a in rows.assignments.values() if a.state in ("leased", "submitted") and a.attempt < MOST_ATTEMPTS]
        waiting = [a for a in rows.assignments.values() if a.state in ("pending", "leased", "submitted")]
        if waiting and any(a.state == "accepted" and not a.applied for a in rows.assignments.values()):
            found.append(("deadline",))
        if any(job.state == "queued" and job.tries < MOST_TRIES for job in rows.jobs.values()):
            found += [("take", owner) for owner in (OWNERS if any(h.owner == OWNERS[0] for h in outside.holds) else OWNERS[:1])]
        for hold in sorted(outside.holds, key=lambda h: (h.job, h.tries, h.owner)):
            job = rows.jobs[hold.job]
            found.append(("finish", hold))
            if job.kind == JobKind.ADMIT and outside.rejected < MOST_REJECTIONS:
                found.append(("reject", hold))
            if outside.lost < MOST_LOST and job.state == "running" and job.kind != JobKind.RESTORE:
                found.append(("lose", hold))
            if job.state == "running" and job.tries < MOST_TRIES:
                found += [("owner_gone", hold), ("engine_died", hold)]
        if len(outside.undone) < MOST_UNDONE and rows.run.state in ("running", "paused"):
            found += [("rollback", after) for after in range(rows.run.rounds_done + 1)]
            applied = {a.agent for a in rows.assignments.values() if a.applied}
            found += [("without", name) for name, agent in zip(NAMES, AGENTS, strict=True) if agent in applied]
        return [*found, ("resume",)] if rows.run.state == "paused" else found

    def happen(self, session: Session, outside: Outside, what: Event) -> tuple[Outside, Any]:
        """Let it happen; what is outside then, and the answer. What is refused changes nothing: its transaction is undone."""
        try:
            after, answer = getattr(self, f"do_{what[0]}")(session, outside, *what[1:])
            session.commit()
        except CoordinatorError as error:
            session.rollback()
            return outside, error
        return after, answer

    def _claim(self, session: Session, agent: str) -> Any:
        found = claim.claim(session, agent, ClaimRequest(runs=["*"]), NOW)
        if isinstance(found, TurnedDown):
            claim.turned_down(session, found, NOW)
            found = claim.claim(session, agent, ClaimRequest(runs=["*"]), NOW)
        return found

    def do_claim(self, session: Session, outside: Outside, agent: str) -> tuple[Outside, Any]:
        found = self._claim(session, agent)
        if not isinstance(found, Leased):
            return outside, None
        known = Lease(agent, found.assignment.assignment_id, found.assignment.attempt)
        return replace(outside, leases=outside.leases | {known}), known

    def do_submit(self, session: Session, outside: Outside, known: Lease) -> tuple[Outside, Any]:
        submission = DeltaSubmission(attempt=known.attempt, digest=self.delta(self.rows(), known), metrics=METRICS)
        return outside, submit.submit(session, known.assignment, known.agent, submission, 9, NOW)

    def do_give_back(self, session: Session, outside: Outside, known: Lease) -> tuple[Outside, Any]:
        request = ReturnRequest(attempt=known.attempt, reason="other")
        return outside, lease.give_back(session, known.assignment, known.agent, request, NOW)

    def do_lapse(self, session: Session, outside: Outside, assignment: str) -> tuple[Outside, Any]:
        row = session.get_one(Assignment, assignment)
        before, row.lease_expires_at = row.lease_expires_at, NOW - timedelta(seconds=1)
        session.flush()
        lease.lapse(session, row.run_id, NOW)
        if row.lease_expires_at is not None and row.lease_expires_at < NOW:
            row.lease_expires_at = before
        return outside, True

    def do_deadline(self, session: Session, outside: Outside) -> tuple[Outside, Any]:
        apply_round.apply_overdue(session, session.scalars(select(Run.id)).one(), NOW + timedelta(hours=1))
        return outside, True

    def do_take(self, session: Session, outside: Outside, owner: str) -> tuple[Outside, Any]:
        job = jobs.take(session, "quick", owner, NOW)
        if job is None:
            return outside, None
        return replace(outside, holds=outside.holds | {job_leases.hold_of(job)}), True

    def do_finish(self, session: Session, outside: Outside, hold: Hold) -> tuple[Outside, Any]:
        outcomes.complete(session, hold, self._result(session, session.get_one(Job, hold.job)), NOW)
        return outside, True

    def do_reject(self, session: Session, outside: Outside, hold: Hold) -> tuple[Outside, Any]:
        outcomes.complete(session, hold, AdmitResult(rejected_because="norm", norms={}), NOW)
        return replace(outside, rejected=outside.rejected + 1), True

    def do_lose(self, session: Session, outside: Outside, hold: Hold) -> tuple[Outside, Any]:
        """The first of its deltas is spoilt by the coordinator's disk."""
        payload: Any = session.get_one(Job, hold.job).payload
        digest = payload.delta if hasattr(payload, "delta") else payload.changes[0].terms[0].digest
        outcomes.fail(session, hold, "blob_missing", f"no blob {digest}", NOW)
        return replace(outside, lost=outside.lost + 1), True

    def do_owner_gone(self, session: Session, outside: Outside, hold: Hold) -> tuple[Outside, Any]:
        """It renews no longer; what it makes of the job may come all the same."""
        session.get_one(Job, hold.job).lease_expires_at = NOW - timedelta(seconds=1)
        session.flush()
        job_leases.lapse(session, NOW)
        return outside, True

    def do_engine_died(self, session: Session, outside: Outside, hold: Hold) -> tuple[Outside, Any]:
        outcomes.fail(session, hold, "worker_died", "killed", NOW, engine_died=True)
        return outside, True

    def do_resume(self, session: Session, outside: Outside) -> tuple[Outside, Any]:
        return outside, steer.resume(session, session.scalars(select(Run.id)).one(), NOW)

    def do_rollback(self, session: Session, outside: Outside, after: int) -> tuple[Outside, Any]:
        undone = rollback.rollback(session, session.scalars(select(Run.id)).one(), after, NOW)
        return replace(outside, undone=(*outside.undone, f"rollback {after}")), undone

    def do_without(self, session: Session, outside: Outside, name: str) -> tuple[Outside, Any]:
        undone = rollback.without(session, session.scalars(select(Run.id)).one(), name, NOW)
        return replace(outside, undone=(*outside.undone, f"without {name}")), undone

    # ---- the engine, and names that are the same on every way to a state ------------------------------------------------------

    def _result(self, session: Session, job: Job) -> Any:
        if job.kind == JobKind.ADMIT:
            return AdmitResult(rejected_because=None, norms={})
        if job.kind == JobKind.RESTORE:
            return self._restored(cast(RestorePayload, job.payload))
        payload = cast(ApplyPayload, job.payload)
        blocks = [self._added(change) for change in payload.changes]
        made = zip(blocks, payload.changes, strict=True)
        shards = [story._made(ref.digest, codec) for ref, change in made for codec in sorted({"exact", *change.codecs})]
        return ApplyResult(blocks=blocks, shards=shards)

    def _added(self, change: Change) -> ShardRef:
        deltas = frozenset(term.digest for term in change.terms)
        digest = digest_of(" ".join([change.block.digest, *sorted(deltas)]).encode())
        self.made_of[digest] = change.block.digest, deltas
        return change.block.model_copy(update={"version": change.block.version + 1, "digest": digest})

    def _restored(self, payload: RestorePayload) -> RestoreResult:
        result = RestoreResult(replayed=[])
        for block in payload.blocks:
            new = block.target.digest
            if block.replay is not None:
                result.replayed.append(self._added(block.replay))
                new = result.replayed[-1].digest
            result.shards += [story._made(new, old.codec) for old in payload.before if old.source == block.present.digest]
        return result

    def delta(self, rows: "Rows", known: Lease) -> str:
        """What an agent makes under a lease: another one each time, as a GPU does."""
        return digest_of(f"{rows.names[known.assignment]} {known.agent} {known.attempt}".encode())

    def history(self, block: str) -> list[frozenset[str]]:
        """The deltas that were added together, one time after another, to the block that has this digest."""
        steps = []
        while block in self.made_of:
            block, deltas = self.made_of[block]
            steps.append(deltas)
        return steps[::-1]

    def rows(self) -> "Rows":
        def table(columns: str, order: str = "rowid") -> list[tuple[Any, ...]]:
            return self._raw.execute(f"SELECT {columns} ORDER BY {order}").fetchall()

        assignments = [
            Visit(*row) for row in table("id, state, attempt, agent_id, delta_digest, applied, round, seat, blocks, failures, meant_for, "
                                         "excluded FROM assignment")
        ]  # fmt: skip
        jobs = [
            Task(*row)
            for row in table(f"id, kind, state, owner, tries, deaths, CASE kind WHEN '{JobKind.RESTORE}' THEN payload END FROM job")
        ]
        names = {row.id: f"{kind}{number}" for kind, rows in (("a", assignments), ("j", jobs)) for number, row in enumerate(rows)}
        [run] = table("state, rounds_done, rounds_total FROM run")
        return Rows(
            {row.id: row for row in assignments}, {row.id: row for row in jobs}, table("number, state, seats FROM round", "number"),
            table("name, version, digest FROM block", "name"), RunRow(*run), names,
        )  # fmt: skip

    def key(self, rows: "Rows", outside: Outside) -> bytes:
        """What tells two states apart: ids by their order, and no times."""
        name = rows.names
        leases = sorted((known.agent, name[known.assignment], known.attempt) for known in outside.leases)
        holds = sorted((name[hold.job], hold.owner, hold.tries) for hold in outside.holds)
        of_rows = [row[1:] for row in (*rows.assignments.values(), *rows.jobs.values())]
        counts = outside.rejected, outside.lost, outside.undone
        text = repr((of_rows, [r[:2] for r in rows.rounds], rows.blocks, rows.run, leases, holds, counts))
        return hashlib.sha1(VISIT.sub(lambda m: name.get(m[0], m[0]), text).encode()).digest()


class Visit(NamedTuple):
    id: str
    state: str
    attempt: int
    agent: str | None
    delta: str | None
    applied: bool
    round: int
    seat: int
    blocks: str
    failures: int
    meant_for: str | None
    excluded: str


class Task(NamedTuple):
    id: str
    kind: str
    state: str
    owner: str | None
    tries: int
    deaths: int
    asked: str | None
    """of one that takes the run back: what it is to make"""


class RunRow(NamedTuple):
    state: str
    rounds_done: int
    rounds_total: int


@dataclass(frozen=True)
class Rows:
    """What the database has of it, read without the help of what is judged."""

    assignments: dict[str, Visit]
    jobs: dict[str, Task]
    rounds: list[tuple[Any, ...]]
    blocks: list[tuple[Any, ...]]
    run: RunRow
    names: dict[str, str]
    """id → a name by the order in which rows were made, the same on every way to a state"""
