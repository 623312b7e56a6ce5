"""Gathers what a run's last visits show, for its diagnosis. It costs the same however long the history is."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Event, Fidelity, Job, Run
from fedcybgd.coordinator.domain import diagnosis
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.diagnosis import SymptomResult
from fedcybgd.coordinator.domain.diagnosis_facts import DiagnosisFacts
from fedcybgd.coordinator.domain.held_up import Held
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.domain.outlook import at
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.agents.troubles import MEANINGS, in_words
from fedcybgd.coordinator.services.measure import scores

JUDGED = (AssignmentState.ACCEPTED, AssignmentState.REJECTED)
RESUMED = "run_resumed"
EVENTS, FIDELITIES, SCORES = 500, 32, 16
"""Of each, the latest ones"""
EVER = datetime(2000, 1, 1, tzinfo=UTC)
"""Before any time that was written down: an index knows what is later, and not what is none"""
# Statements are made once: that costs more than asking.
VISIT_ROWS = (
    select(Assignment.agent_id, Assignment.blocks, Assignment.state, Assignment.reason, Assignment.metrics)
    .where(Assignment.run_id == bindparam("run"), Assignment.state.in_(JUDGED))
    .order_by(Assignment.round.desc(), Assignment.seat.desc(), Assignment.id)
    .limit(diagnosis.LOOKED_AT)
)
WHO = select(Agent.id, Agent.name, Agent.limits).where(Agent.id.in_(bindparam("agents", expanding=True)))
IN_QUARANTINE = select(Agent.id, Agent.name, Agent.quarantined_until).where(Agent.quarantined_until > EVER)
FIDELITY_ROWS = (
    select(Fidelity.block, Fidelity.metrics)
    .where(Fidelity.run_id == bindparam("run"))
    .order_by(Fidelity.round.desc(), Fidelity.block.desc())
    .limit(FIDELITIES)
)
NEWEST = (
    select(Event.id, Event.at, Event.code, Event.message, Event.level, Event.agent_id)
    .where(Event.run_id == bindparam("run"))
    .order_by(Event.id.desc())
    .limit(EVENTS)
    .subquery()
)
EVENT_ROWS = (
    select(NEWEST.c.code, NEWEST.c.message, NEWEST.c.level, NEWEST.c.at, Agent.name)
    .join(Agent, Agent.id == NEWEST.c.agent_id, isouter=True)
    .where((NEWEST.c.level != "info") | NEWEST.c.code.in_([RESUMED, *sorted(diagnosis.ATTEMPT_CODES)]))
    .order_by(NEWEST.c.id.desc())
)
SAID_ONCE = (
    select(Event.code, Event.message)
    .where(func.coalesce(Event.run_id, "") == bindparam("run"), Event.code.in_(("label_skew", "labels_forgotten", "single_label")))
    .order_by(Event.id.desc())
    .limit(10)
)
LEASES = (
    select(Assignment.blocks, Assignment.leased_at, Assignment.lease_expires_at, Assignment.progress, Agent.name)
    .join(Agent, Agent.id == Assignment.agent_id)
    .where(Assignment.run_id == bindparam("run"), Assignment.round == bindparam("round"), Assignment.state == AssignmentState.LEASED)
    .order_by(Assignment.lease_expires_at)
    .limit(diagnosis.LOOKED_AT)
)
RUNNING = select(Job.kind, func.coalesce(Job.moved_at, Job.started_at)).where(
    Job.subject == bindparam("run"), Job.state == JobState.RUNNING
)


@dataclass(frozen=True)
class Told:
    """What the newest events say, from the last resume on."""

    failures: dict[str, Counter[str]]
    """agent → why an attempt of it came to nothing → how often"""
    newest: dict[str, str]
    """what the newest warning of each code says"""
    cut: dict[str, Counter[str]]
    """agent → what held it up → how often"""
    cut_at: dict[str, datetime]
    """agent → when it was held up last"""


def of(session: Session, run: Run, now: datetime) -> list[SymptomResult]:
    """What is unusual about a run."""
    return diagnosis.diagnose(facts_of(session, run, now))


def facts_of(session: Session, run: Run, now: datetime) -> DiagnosisFacts:
    visits = session.execute(VISIT_ROWS, {"run": run.id}).all()
    agents = {row.id: row for row in session.execute(WHO, {"agents": list({v.agent_id for v in visits})})}
    in_quarantine = session.execute(IN_QUARANTINE).all()
    participants = set(run.participants) if in_quarantine else set()
    names = {agent_id: row.name for agent_id, row in agents.items()}
    token_seconds, peaks = defaultdict[str, list[tuple[str, float]]](list), Counter[str]()
    for visit in visits:
        if visit.metrics is not None:
            if visit.metrics.tokens and visit.metrics.seconds:
                took = ", ".join(visit.blocks), visit.metrics.seconds / visit.metrics.tokens
                token_seconds[names.get(visit.agent_id, "?")].append(took)
            peaks[visit.agent_id] = max(peaks[visit.agent_id], visit.metrics.peak_memory_bytes)
    told = _events(session, run)
    return DiagnosisFacts(
        losses=scores.losses_until(session, run.id, run.rounds_done)[0],
        scores=[row.metrics for row in queries.last_evaluations(session, run.id, SCORES)],
        judged=len(visits),
        rejected=[(names.get(v.agent_id, "?"), v.reason or "") for v in visits if v.state == AssignmentState.REJECTED],
        failures=told.failures, told=told.newest, token_seconds=token_seconds, held=list(_held(session, run, told, now)), cut=told.cut,
        memory={names[a]: (peak, agents[a].limits.memory_bytes) for a, peak in peaks.items() if a in agents},
        cosines=_cosines(session, run.id), floor=run.spec.compression.floor, still=_still(session, run.id, now),
        quarantined={name: at(until) for agent_id, name, until in in_quarantine if until is not None and agent_id in participants},
        unfit={} if RUN.is_final(run.state) else readiness.unfit(session, run, diagnosis.LOOKED_AT),
        unmeasured=queries.failed_measurements(session, run.id),
    )  # fmt: skip


def _events(session: Session, run: Run) -> Told:
    told = Told(defaultdict(Counter), {}, defaultdict(Counter), {})
    for code, message, level, at_time, agent in session.execute(EVENT_ROWS, {"run": run.id}):
        if code == RESUMED:
            break  # what was before it was looked after
        if level != "info":
            told.newest.setdefault(code, message)
        if code in diagnosis.ATTEMPT_CODES and agent is not None:
            told.failures[agent][code] += 1
        if code in MEANINGS and agent is not None:
            told.cut[agent][code] += 1
            told.cut_at.setdefault(agent, at_time)
    # Said once a run, however long ago: looked for by the code, of which there are few, and not among all that the run has told.
    told.newest.update((row.code, row.message) for row in session.execute(SAID_ONCE, {"run": run.id}))
    return told


def _held(session: Session, run: Run, told: Told, now: datetime) -> Iterator[Held]:
    """Leases of the round under way. Each is renewed for as long as it was given for: so it is known when its agent was heard last."""
    lease = timedelta(seconds=run.spec.lease_s)
    for row in session.execute(LEASES, {"run": run.id, "round": run.rounds_done}):
        unheard = (now - (row.lease_expires_at - lease)).total_seconds()
        trouble = row.progress.trouble if row.progress is not None else None
        since = told.cut_at.get(row.name) or row.leased_at or now
        yield Held(
            row.name, ", ".join(row.blocks), unheard, lease.total_seconds(), row.progress.phase if row.progress is not None else None,
            in_words(trouble) if trouble is not None else None, (now - since).total_seconds(),
        )  # fmt: skip


def _cosines(session: Session, run_id: str) -> dict[str, float]:
    """Emulator → the newest fidelity of it."""
    found = dict[str, float]()
    for block, metrics in session.execute(FIDELITY_ROWS, {"run": run_id}):
        if metrics.cosine is not None:
            found.setdefault(f"{block} in {metrics.plan}", metrics.cosine)
    return found


def _still(session: Session, run_id: str, now: datetime) -> dict[str, float]:
    return {kind: (now - moved).total_seconds() for kind, moved in session.execute(RUNNING, {"run": run_id}) if moved is not None}
