"""Step 6: has a delta measured, and accepts or rejects it."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.payloads import AdmitPayload, AdmitResult
from fedcybgd.coordinator.domain.jobs.registry import ADMIT, Done
from fedcybgd.coordinator.domain.label_skew import by_label
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.measure import label_skew
from fedcybgd.coordinator.services.path import apply_round, compare, give_up, open_round, trained
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import agents, assignments


def judge(session: Session, run: Run, assignment: Assignment, now: datetime) -> None:
    """A delta has come: have it measured and judged, unless it came before."""
    assert assignment.delta_digest is not None
    if (before := _replayed(session, assignment)) is not None:
        _reject(session, run, assignment, f"replay: the same delta was sent for round {before}", now)
        return
    spec = run.spec
    payload = AdmitPayload(
        assignment_id=assignment.id, delta=assignment.delta_digest, blocks=trained.trained_refs(session, assignment),
        always=spec.schedule.always, rules=spec.admission, corrected=trained.corrected_refs(session, assignment),
        corrections=assignment.train.corrections, labels=spec.task.num_labels if by_label(spec) else None,
    )  # fmt: skip
    jobs.enqueue(session, ADMIT, run.id, payload, now)


def _replayed(session: Session, assignment: Assignment) -> int | None:
    """The round of this run for which the same bytes were taken before, by whomever: patches hand deltas from agent to agent."""
    same = (Assignment.run_id == assignment.run_id) & (Assignment.delta_digest == assignment.delta_digest)
    taken = Assignment.state.in_((AssignmentState.SUBMITTED, AssignmentState.ACCEPTED))
    return session.scalar(select(Assignment.round).where(same, taken, Assignment.id != assignment.id).limit(1))


def judged(session: Session, done: Done[AdmitPayload, AdmitResult]) -> None:
    """Accept or reject a delta; when all of the round are accepted, have them applied."""
    payload, result, now = done.payload, done.result, done.now
    run = session.get_one(Run, done.subject, with_for_update=True)
    assignment = session.get_one(Assignment, payload.assignment_id, with_for_update=True)
    if assignment.state != AssignmentState.SUBMITTED:
        return  # judged already
    if RUN.is_final(run.state):
        assignments.reject(assignment, f"run_{run.state}", now)
        return
    assignment.measured = compare.measured(session, assignment, result.deltas)
    if result.rejected_because is not None:
        _reject(session, run, assignment, result.rejected_because, now)
        return
    compared = compare.with_accepted(session, run, assignment)
    if (against := compared.against) is not None:
        _reject(session, run, assignment, against.reason, now, against.blamed)
        return
    if compared.no_work is not None:
        name = queries.agent_name(session, assignment.agent_id)
        text = f"{name} may not have trained for round {assignment.round}: {compared.no_work}"
        record(session, now, "warning", "free_rider", text, run_id=run.id, agent_id=assignment.agent_id,
               round=assignment.round, block=assignment.called)  # fmt: skip
    assignments.accept(assignment, now)
    label_skew.look_at_visit(session, run, assignment, now)
    if assignment.agent_id is not None:
        agents.absolve(session.get_one(Agent, assignment.agent_id))
    apply_round.apply_if_due(session, run, assignment.round, now)


def _reject(session: Session, run: Run, assignment: Assignment, reason: str, now: datetime, blamed: bool = True) -> None:
    reject(session, run, assignment, reason, now, blamed)
    apply_round.apply_if_due(session, run, assignment.round, now)  # the others may have waited for this judgement alone


def reject(session: Session, run: Run, assignment: Assignment, reason: str, now: datetime, blamed: bool = True) -> None:
    """Its delta is of no use: another agent is asked for what it trained. `blamed`: and it counts against the one that sent it."""
    assignments.reject(assignment, reason, now)
    name = queries.agent_name(session, assignment.agent_id)
    record(
        session,
        now,
        "error",
        "delta_rejected",
        f"delta of {name} for {assignment.called}: {reason}",
        run_id=run.id,
        agent_id=assignment.agent_id,
        round=assignment.round,
        block=assignment.called,
    )
    spec = run.spec
    seat = session.get_one(Round, (run.id, assignment.round)).seats[assignment.seat]
    # The same agent would send the same again: seeds do not come from the attempt. Another one is asked.
    excluded = list(assignment.excluded)
    if assignment.agent_id is not None:
        excluded.append(assignment.agent_id)
    if assignment.agent_id is not None and blamed:
        give_up.strike(session, run, assignment.agent_id, "delta_rejected", now)
    there = readiness.there(session, run.id, [seat.agent] if seat.agent is not None else [])
    again = open_round.assign(session, run, spec, seat, now, there, assignment.failures + 1, excluded, assignment.failed)
    give_up.pause_if_hopeless(session, run, again, f"block {assignment.called} was rejected: {reason}", now)
