"""Leases and other times after an absence of the coordinator: nobody loses anything because it was away."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, Assignment, Run, Webhook
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.progress import LEAST_LIFE_S, MOST_LIFE_S
from fedcybgd.coordinator.domain.quarantine import LONGEST
from fedcybgd.coordinator.domain.webhook import pause_after
from fedcybgd.coordinator.services.records import job_leases


def excuse_agents(session: Session, now: datetime) -> None:
    """At the start nobody knows for how long agents could not be heard: none counts as silent for that time."""
    for agent in session.scalars(select(Agent).where(Agent.state == AgentState.ACTIVE).order_by(Agent.id)):
        agent.last_seen_at = now


def after_absence(session: Session, now: datetime, lost: timedelta) -> int:
    """Extend every open lease once, and let every other wait go on where it stood; returns how many leases there are.

    What was noted while the clock was ahead is not later than now either.
    """
    leased = select(Assignment, Run).join(Run, Run.id == Assignment.run_id).where(Assignment.state == AssignmentState.LEASED)
    extended = session.execute(leased.order_by(Run.id, Assignment.id)).all()
    for assignment, run in extended:
        assignment.lease_expires_at = now + timedelta(seconds=run.spec.lease_s)
        assignment.progressed_at = now
        if assignment.ends_at is not None:
            ends_at = max(assignment.ends_at + lost, now + timedelta(seconds=LEAST_LIFE_S))
            assignment.ends_at = min(ends_at, now + timedelta(seconds=MOST_LIFE_S))
    for assignment in session.scalars(select(Assignment).where(Assignment.state == AssignmentState.PENDING).order_by(Assignment.id)):
        assignment.waiting_since = min(assignment.waiting_since + lost, now)
    accepted = select(Assignment).where(Assignment.state == AssignmentState.ACCEPTED, ~Assignment.applied).order_by(Assignment.id)
    for assignment in session.scalars(accepted):
        if assignment.judged_at is not None:
            assignment.judged_at = min(assignment.judged_at + lost, now)
    for agent in session.scalars(select(Agent).where(Agent.state == AgentState.ACTIVE).order_by(Agent.id)):
        if agent.last_seen_at is not None:
            agent.last_seen_at = min(agent.last_seen_at + lost, now)
    for agent in session.scalars(select(Agent).where(Agent.quarantined_until.is_not(None)).order_by(Agent.id)):
        if agent.quarantined_until is not None:  # by a clock that was ahead it would last for long
            agent.quarantined_until = min(agent.quarantined_until, now + LONGEST)
    for hook in session.scalars(select(Webhook).order_by(Webhook.address).with_for_update()):
        hook.next_at = min(hook.next_at + lost, now + pause_after(max(1, hook.tries)))
        if hook.failing_since is not None:
            hook.failing_since = min(hook.failing_since + lost, now)
    job_leases.extend(session, now)
    return len(extended)
