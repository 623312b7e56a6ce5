"""Builds what operators see at a glance: everything, and one run. It costs the same however long the history is; `lists` has the whole."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Block, Event, Model, Run
from fedcybgd.coordinator.db.paging import Page
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState, OnFailure
from fedcybgd.coordinator.domain.jobs.registry import kinds_that
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.domain.seat import called
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.read import alarms, labels, lists, pace
from fedcybgd.coordinator.services.read.working import running_jobs
from fedcybgd.coordinator.services.records import ledgers, replicas, signing
from fedcybgd.shared.contract.provenance import SigningKeyView
from fedcybgd.shared.contract.views import AnchorView, BlockView, EventView, LeaseView, RunView, StatusView

RUNS_SHOWN, ROUNDS_SHOWN, EVENTS_SHOWN, TROUBLES_SHOWN = 50, 12, 10, 20
SHOWN = 100
"""Of leases, participants, evaluations."""
AGENTS_SHOWN = 50
PENDING = (JobState.QUEUED, JobState.RUNNING)
# Without the tensors, which are a hundred times as much. Statements are made once: that costs more than asking.
BLOCKS = select(Block.name, Block.kind, Block.version, Block.digest, Block.size, Block.num_parameters).order_by(Block.position)
IS_LEASED = Assignment.state == AssignmentState.LEASED
LEASES = (
    select(
        Run.name.label("run"), Assignment.round, Assignment.blocks, Agent.name.label("agent"), Assignment.attempt,
        Assignment.lease_expires_at.label("expires_at"), Assignment.progressed_at, Assignment.progress,
    )
    .join(Run, Run.id == Assignment.run_id).join(Agent, Agent.id == Assignment.agent_id)
    .where(IS_LEASED).order_by(Assignment.id).limit(SHOWN)
)  # fmt: skip
TRAINING = select(func.count()).select_from(Assignment).where(IS_LEASED)
AGENT_STATES = select(Agent.state, func.count()).group_by(Agent.state)


def run_status(session: Session, name: str, now: datetime, members: bool = True) -> RunView:
    return run_view(session, queries.run_by_name(session, name), now, members)


def run_view(session: Session, run: Run, now: datetime, members: bool = True) -> RunView:
    """Without `members` nobody is counted: with ten thousand agents that is most of the work."""
    session.flush()
    trained = {*run.trained_blocks, *run.spec.schedule.always} if run.prepared else set()
    rounds = lists.rounds_of(session, run.id, Page(limit=ROUNDS_SHOWN)).items
    current = lists.assignments_in(session, run.id, rounds[0].number) if rounds else []
    jobs, scored = queries.job_counts(session, run.id), queries.last_evaluations(session, run.id, SHOWN)
    names = queries.names_of(session, first) if (first := run.participants[:SHOWN] if members else []) else {}
    model = session.scalars(select(Model.name).where(Model.id == run.model_id)).one()
    at_pace = pace.of_run(session, run, now)
    return RunView(
        id=run.id, name=run.name, model=model, state=run.state, reason=run.reason, prepared=run.prepared,
        waits_for_agents=run.waits_for_agents,
        rounds_done=run.rounds_done, rounds_total=run.rounds_total, created_at=run.created_at, started_at=run.started_at, ended_at=run.ended_at,
        spec=run.spec, participants=[names.get(agent, agent) for agent in first], participant_count=len(run.participants) if members else 0,
        readiness={} if RUN.is_final(run.state) or not members else readiness.counts(session, run, run.spec),
        notes=run.notes, files=run.files,
        blocks=[BlockView(**row._mapping, trained=row.name in trained)
                for row in session.execute(BLOCKS.where(Block.run_id == run.id))],
        rounds=list(rounds), current=current,
        evaluations=[lists.evaluation(row) for row in scored], worst_labels=labels.worst(session, run) if scored else [],
        conclusion=run.conclusion, anchor=anchor_view(session, run.id),
        anchor_of=session.scalar(select(Run.name).where(Run.id == run.anchor_of)) if run.anchor_of is not None else None,
        bytes=ledgers.bytes_of(ledgers.totals(session, run.id)), pending_jobs=sum(jobs[state].total() for state in PENDING),
        failed_measurements=sum(jobs[JobState.FAILED][kind] for kind in kinds_that(OnFailure.GOES_ON)),
        seconds_left=at_pace.seconds_left, pace=at_pace, events=_events(queries.events_of(session, run.id, EVENTS_SHOWN)),
    )  # fmt: skip


def anchor_view(session: Session, run_id: str) -> AnchorView | None:
    found = queries.anchor_of(session, run_id)
    if found is None:
        return None
    return AnchorView(
        id=found.id, name=found.name, state=found.state, rounds_done=found.rounds_done, rounds_total=found.rounds_total,
        score=queries.final_score(session, found),
    )  # fmt: skip


def overview(session: Session, now: datetime, here: str, waiting_claims: int, full_disks: Sequence[str]) -> StatusView:
    """`here`: the coordinator that is asked, and how many claims wait at it; of the others it is known to a few seconds."""
    others = [one for one in replicas.alive(session, now) if one.id != here]
    jobs, running = queries.jobs_by_state(session), running_jobs(session, now)
    return StatusView(
        version=version("fedcybgd"), signing_key=key.fingerprint if (key := signing.newest(session)) is not None else None, now=now,
        waiting_claims=waiting_claims + sum(one.waiting_claims for one in others), coordinators=1 + len(others),
        engines=len(replicas.alive(session, now, serving=False)),
        runs=list(lists.runs(session, Page(limit=RUNS_SHOWN)).items),
        agents_by_state=agent_counts(session),
        agents=list(lists.agents(session, Page(limit=AGENTS_SHOWN)).items),
        training=session.scalar(TRAINING) or 0,
        leases=[LeaseView(**row._mapping, block=called(row.blocks)) for row in session.execute(LEASES)],
        bytes=ledgers.bytes_of(ledgers.totals(session)),
        jobs=jobs, running_jobs=running, alarms=alarms.raised(session, now, jobs, running, full_disks),
        last_errors=_events(queries.last_troubles(session, TROUBLES_SHOWN)),
    )  # fmt: skip


def agent_counts(session: Session) -> dict[str, int]:
    """State → number of agents."""
    return {row[0]: row[1] for row in session.execute(AGENT_STATES)}


def signing_key(session: Session) -> SigningKeyView:
    row = signing.newest(session)
    if row is None:
        raise NotFound("this coordinator has no signing key: `fedcoord key renew` makes one")
    return SigningKeyView(key=row.public, fingerprint=row.fingerprint)


def _events(events: Iterable[Event]) -> list[EventView]:
    return [EventView(at=e.at, level=e.level, code=e.code, message=e.message) for e in events]
