"""Reads that more than one service needs."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import (
    Agent,
    Assignment,
    Block,
    Evaluation,
    Event,
    Fidelity,
    Job,
    Model,
    OperatorKey,
    Round,
    Run,
    Traffic,
)
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState, OnFailure
from fedcybgd.coordinator.domain.jobs.registry import kinds_that
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.shared.contract.manifests import ShardRef


def run_by_name(session: Session, name_or_id: str, lock: bool = False) -> Run:
    """A run by its id, or the newest one of that name."""
    query = select(Run).where((Run.id == name_or_id) | (Run.name == name_or_id)).order_by(Run.created_at.desc()).limit(1)
    run = session.scalar(query.with_for_update() if lock else query)
    if run is None:
        raise NotFound(f"there is no run {name_or_id!r}; `fedcoord run list` lists them")
    return run


def blocks_of(session: Session, run_id: str) -> Sequence[Block]:
    """The blocks of a run in the order of the model."""
    return session.scalars(select(Block).where(Block.run_id == run_id).order_by(Block.position)).all()


def shard_refs(blocks: Sequence[Block]) -> list[ShardRef]:
    return [ShardRef(block=b.name, version=b.version, codec="exact", digest=b.digest, size=b.size) for b in blocks]


def last_round(session: Session, run_id: str) -> Round | None:
    return next(iter(last_rounds(session, run_id, 1)), None)


def last_rounds(session: Session, run_id: str, limit: int | None) -> Sequence[Round]:
    """The newest rounds of a run, the newest first."""
    return session.scalars(select(Round).where(Round.run_id == run_id).order_by(Round.number.desc()).limit(limit)).all()


def applied_in(session: Session, run_id: str, first: int) -> dict[int, int]:
    """From round `first` on: how many of a round's deltas are part of the blocks."""
    chosen = (Assignment.run_id == run_id) & (Assignment.round >= first) & Assignment.applied
    return {row[0]: row[1] for row in session.execute(select(Assignment.round, func.count()).where(chosen).group_by(Assignment.round))}


def rounds_closed(session: Session, run_id: str) -> int:
    return session.scalar(select(func.count()).select_from(Round).where(Round.run_id == run_id, Round.state == RoundState.CLOSED)) or 0


def leased_to(session: Session, agent_id: str) -> Sequence[str]:
    """Ids of the assignments that an agent holds."""
    leased = (Assignment.state == AssignmentState.LEASED) & (Assignment.agent_id == agent_id)
    return session.scalars(select(Assignment.id).where(leased).order_by(Assignment.id)).all()


def unfinished_jobs(session: Session, subject: str) -> int:
    return (
        session.scalar(
            select(func.count()).select_from(Job).where(Job.subject == subject, Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
        )
        or 0
    )


def failed_measurements(session: Session, run_id: str) -> int:
    failed = (Job.subject == run_id) & (Job.state == JobState.FAILED) & Job.kind.in_(kinds_that(OnFailure.GOES_ON))
    return session.scalar(select(func.count()).select_from(Job).where(failed)) or 0


def evaluations_of(session: Session, run_id: str) -> Sequence[Evaluation]:
    return session.scalars(select(Evaluation).where(Evaluation.run_id == run_id).order_by(Evaluation.after_rounds)).all()


def traffic_of(session: Session, run_id: str) -> dict[str, int]:
    """Bytes per kind."""
    rows = session.execute(select(Traffic.kind, func.sum(Traffic.bytes)).where(Traffic.run_id == run_id).group_by(Traffic.kind))
    return {kind: int(total) for kind, total in rows}


def assignments_of(session: Session, run_id: str, round: int | None = None) -> Sequence[Assignment]:
    query = select(Assignment).where(Assignment.run_id == run_id).order_by(Assignment.round, Assignment.waiting_since, Assignment.id)
    return session.scalars(query if round is None else query.where(Assignment.round == round)).all()


def agents(session: Session, limit: int | None = None) -> Sequence[Agent]:
    """The agents by name."""
    return session.scalars(select(Agent).order_by(Agent.name).limit(limit)).all()


def models(session: Session) -> Sequence[Model]:
    """The base models by name."""
    return session.scalars(select(Model).order_by(Model.name)).all()


def operator_key_hash(session: Session) -> str | None:
    """The hash of the operator's key in force."""
    return session.scalar(select(OperatorKey.key_hash).limit(1))


def agent_names(session: Session) -> dict[str, str]:
    return {row.id: row.name for row in session.execute(select(Agent.id, Agent.name))}


def recent_events(session: Session, limit: int = 20, levels: tuple[str, ...] = (), run_id: str | None = None) -> Sequence[Event]:
    query = select(Event).order_by(Event.id.desc()).limit(limit)
    if levels:
        query = query.where(Event.level.in_(levels))
    return session.scalars(query.where(Event.run_id == run_id) if run_id else query).all()


def fidelity_since(session: Session, run_id: str, round: int) -> Sequence[Fidelity]:
    """What was measured of emulators, from a round on."""
    since = (Fidelity.run_id == run_id) & (Fidelity.round >= round)
    return session.scalars(select(Fidelity).where(since).order_by(Fidelity.round, Fidelity.block, Fidelity.created_at)).all()


def traffic_rows(session: Session, run_id: str) -> Sequence[Traffic]:
    return session.scalars(select(Traffic).where(Traffic.run_id == run_id).order_by(Traffic.round, Traffic.agent_id, Traffic.kind)).all()
