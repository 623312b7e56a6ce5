"""Reads that more than one service needs."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Row, String, and_, bindparam, func, select
from sqlalchemy.orm import Session, defer

from fedcybgd.coordinator.db.models import Agent, Assignment, Block, Evaluation, Event, Fidelity, Job, Round, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState, OnFailure
from fedcybgd.coordinator.domain.jobs.registry import kinds_that
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.measured import FidelityNumbers, Score

LOOKED_AT = 8
"""Scores, the newest: of which one is looked for that came to a number"""
OPEN_JOBS = (JobState.QUEUED, JobState.RUNNING, JobState.FAILED)
# Made once: that costs more than asking.
_OF_RUN = bindparam("run_id", type_=String)
RUNS = select(Run).where((Run.id == bindparam("named")) | (Run.name == bindparam("named"))).order_by(Run.created_at.desc()).limit(1)
ANCHORS = select(Run).where(Run.anchor_of == _OF_RUN).order_by(Run.created_at.desc()).limit(1)
WITH_TENSORS = select(Block).where(Block.run_id == _OF_RUN).order_by(Block.position)
BLOCKS = WITH_TENSORS.options(defer(Block.tensors, raiseload=True))
SHARDS = select(Block.name, Block.version, Block.digest, Block.size).where(Block.run_id == _OF_RUN).order_by(Block.position)
LAST_ROUND = select(Round).where(Round.run_id == _OF_RUN).order_by(Round.number.desc()).limit(1)
LAST_NUMBER = select(Round.number).where(Round.run_id == _OF_RUN).order_by(Round.number.desc()).limit(1)
LAST_EVALUATIONS = (
    select(Evaluation.after_rounds, Evaluation.created_at, Evaluation.metrics)
    .where(Evaluation.run_id == _OF_RUN)
    .order_by(Evaluation.after_rounds.desc())
    .limit(bindparam("most"))
)

APPLIED = (
    select(Assignment.round, func.count())
    .where(Assignment.run_id == _OF_RUN, Assignment.round.between(bindparam("first"), bindparam("last")), Assignment.applied)
    .group_by(Assignment.round)
)
# Looked for by the state, which few have, and not among all of the run's.
WAITING = (
    select(Assignment)
    .where(Assignment.state == AssignmentState.PENDING, func.coalesce(Assignment.run_id, "") == _OF_RUN)
    .order_by(Assignment.id)
)
COUNTED_JOBS = (
    select(Job.state, Job.kind, func.count()).where(Job.subject == _OF_RUN, Job.state.in_(OPEN_JOBS)).group_by(Job.state, Job.kind)
)
UNMEASURED = (
    select(func.count())
    .select_from(Job)
    .where(Job.subject == _OF_RUN, Job.state == JobState.FAILED, Job.kind.in_(kinds_that(OnFailure.GOES_ON)))
)
AGENT_NAME = select(Agent.name).where(Agent.id == bindparam("agent"))
FIDELITIES = (
    select(Fidelity.round, Fidelity.block, Fidelity.metrics)
    .where(Fidelity.run_id == _OF_RUN, Fidelity.round.between(bindparam("first"), bindparam("last")))
    .order_by(Fidelity.round, Fidelity.block, Fidelity.created_at)
)


def run_by_name(session: Session, name_or_id: str, lock: bool = False) -> Run:
    """A run by its id, or the newest one of that name."""
    known: Run | None = None if lock else session.identity_map.get(session.identity_key(Run, name_or_id))
    if known is not None:
        return known
    run = session.scalar(RUNS.with_for_update() if lock else RUNS, {"named": name_or_id})
    if run is None:
        raise NotFound(f"there is no run {name_or_id!r}; `fedcoord run list` lists them")
    return run


def anchor_of(session: Session, run_id: str) -> Run | None:
    """The run that is the anchor of another, the newest of them."""
    return session.scalar(ANCHORS, {"run_id": run_id})


def run_id(session: Session, name_or_id: str) -> str:
    """The id of a run by its id or name, as `run_by_name` finds it."""
    return run_by_name(session, name_or_id).id


def blocks_of(session: Session, run_id: str, tensors: bool = False) -> Sequence[Block]:
    """The blocks of a run in the order of the model; what tensors they hold only where that is asked for: it is most of their bytes."""
    return session.scalars(WITH_TENSORS if tensors else BLOCKS, {"run_id": run_id}).all()


def exact_shards(session: Session, run_id: str, blocks: Collection[str] | None = None) -> list[ShardRef]:
    """The exact shards of a run's present versions in the order of the model, or those of some blocks."""
    asked = SHARDS if blocks is None else SHARDS.where(Block.name.in_(blocks))
    rows = session.execute(asked, {"run_id": run_id})
    return [ShardRef(block=name, version=version, codec=EXACT, digest=digest, size=size) for name, version, digest, size in rows]


def shard_refs(blocks: Sequence[Block]) -> list[ShardRef]:
    return [ShardRef(block=b.name, version=b.version, codec=EXACT, digest=b.digest, size=b.size) for b in blocks]


def last_round(session: Session, run_id: str) -> Round | None:
    return session.scalar(LAST_ROUND, {"run_id": run_id})


def last_number(session: Session, run_id: str) -> int | None:
    """Of the round that was opened last."""
    return session.scalar(LAST_NUMBER, {"run_id": run_id})


def applied_in(session: Session, run_id: str, first: int, last: int) -> dict[int, int]:
    """From round `first` to `last`: how many of a round's deltas are part of the blocks."""
    return {row[0]: row[1] for row in session.execute(APPLIED, {"run_id": run_id, "first": first, "last": last})}


def pending_in(session: Session, run_id: str, lock: bool = False) -> Sequence[Assignment]:
    """The assignments of a run that nobody holds."""
    query = WAITING.with_for_update().execution_options(populate_existing=True) if lock else WAITING
    return session.scalars(query, {"run_id": run_id}).all()


def leased_to(session: Session, agent_id: str) -> Sequence[str]:
    """Ids of the assignments that an agent holds, run by run."""
    leased = (Assignment.state == AssignmentState.LEASED) & (Assignment.agent_id == agent_id)
    return session.scalars(select(Assignment.id).where(leased).order_by(Assignment.run_id, Assignment.id)).all()


def job_counts(session: Session, subject: str) -> dict[str, Counter[str]]:
    """State → kind → number of the jobs of a run or model that are not done."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for state, kind, number in session.execute(COUNTED_JOBS, {"run_id": subject}):
        found[state][kind] = number
    return found


def jobs_by_state(session: Session) -> dict[str, int]:
    """Those that are done are history, and not counted."""
    counted = select(Job.state, func.count()).where(Job.state.in_(OPEN_JOBS)).group_by(Job.state)
    return {row[0]: row[1] for row in session.execute(counted)}


def failed_measurements(session: Session, run_id: str) -> int:
    return session.scalar(UNMEASURED, {"run_id": run_id}) or 0


def last_evaluations(session: Session, run_id: str, limit: int) -> Sequence[Row[int, datetime, Score]]:
    """The newest ones, the newest last: after how many rounds, when, and what."""
    return session.execute(LAST_EVALUATIONS, {"run_id": run_id, "most": limit}).all()[::-1]


def final_score(session: Session, run: Run) -> Score | None:
    """Of the model that the run ended with, or the newest so far; None: the newest scores came to no number."""
    if run.conclusion is not None and run.conclusion.score is not None:
        return run.conclusion.score
    newest = reversed(last_evaluations(session, run.id, LOOKED_AT))
    return next((found.metrics for found in newest if found.metrics.loss is not None), None)


def assignments_of(session: Session, run_id: str, round: int) -> Sequence[Assignment]:
    """Those of one round."""
    query = select(Assignment).where(Assignment.run_id == run_id, Assignment.round == round)
    return session.scalars(query.order_by(Assignment.waiting_since, Assignment.id)).all()


def agents(session: Session) -> Sequence[Agent]:
    """All agents by name."""
    return session.scalars(select(Agent).order_by(Agent.name)).all()


def is_open_to(run: Run, spec: RunFile) -> ColumnElement[bool]:
    """Whether a run is open to an agent: one that its file names, that is not revoked, and that was not taken out."""
    return is_open(None if spec.agents == "all" else spec.agents, run.without)


def is_open(named: Sequence[str] | None, without: Sequence[str]) -> ColumnElement[bool]:
    """Whether an agent may take part where some are named (None: all may), and some were taken out."""
    may = [Agent.state != AgentState.REVOKED]
    may += [Agent.id.not_in(without)] if without else []
    return and_(*may, *([] if named is None else [Agent.name.in_(named)]))


def agent_name(session: Session, agent_id: str | None) -> str:
    """For people: the name of an agent, or ? where there is none."""
    return session.scalar(AGENT_NAME, {"agent": agent_id}) or "?"


def agent_by_name(session: Session, name_or_id: str) -> Agent:
    """An agent by its name or id."""
    agent = session.scalar(select(Agent).where((Agent.name == name_or_id) | (Agent.id == name_or_id)))
    if agent is None:
        raise NotFound(f"there is no agent {name_or_id!r}; `fedcoord agents list` lists them")
    return agent


def names_of(session: Session, ids: Collection[str]) -> dict[str, str]:
    """Id → name of some agents."""
    return {row.id: row.name for row in session.execute(select(Agent.id, Agent.name).where(Agent.id.in_(ids)))}


def events_of(session: Session, run_id: str, limit: int) -> Sequence[Event]:
    """The newest events of a run, the newest first."""
    return session.scalars(select(Event).where(Event.run_id == run_id).order_by(Event.id.desc()).limit(limit)).all()


def who_reported(session: Session, run_id: str, code: str, agents: Collection[str], since: datetime) -> list[str]:
    """Names of those of some agents of whom a run has an event with this code."""
    told = (Event.run_id == run_id) & (Event.code == code) & (Event.at >= since)
    query = select(Agent.name).join(Event, Event.agent_id == Agent.id).where(told, Agent.id.in_(agents))
    return list(session.scalars(query.distinct().order_by(Agent.name)))


def last_troubles(session: Session, limit: int) -> list[Event]:
    """The newest warnings and errors, the newest first."""
    newest = (select(Event).where(Event.level == level).order_by(Event.id.desc()).limit(limit) for level in ("warning", "error"))
    return sorted((event for query in newest for event in session.scalars(query)), key=lambda event: -event.id)[:limit]


def fidelity_in(session: Session, run_id: str, first: int, last: int) -> Sequence[Row[int, str, FidelityNumbers]]:
    """What was measured of emulators in the rounds from `first` to `last`: round, block, numbers."""
    return session.execute(FIDELITIES, {"run_id": run_id, "first": first, "last": last}).all()
