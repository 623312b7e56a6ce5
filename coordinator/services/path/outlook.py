"""Asks of work that waits who can take it, and whether they are there: cheaply while somebody is, by name when nobody is."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain.outlook import Candidate, Outlook, OutlookKind, outlook
from fedcybgd.coordinator.domain.quarantine import passed_over
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.emulators import exposure_budget


def of(session: Session, run: Run, assignment: Assignment, now: datetime) -> Outlook:
    """What is to be expected of an assignment that waits."""
    spec, excluded = run.spec, set(assignment.excluded)
    if readiness.somebody_there(session, run, spec, excluded) and exposure_budget.somebody_may(session, run, spec, assignment, there=True):
        return Outlook(OutlookKind.OPEN)
    bounded = spec.exposure.max_exact_blocks is not None
    within = set(exposure_budget.who_may(session, run, spec, assignment)) if bounded else set()
    candidates = [
        Candidate(
            m.name, m.standing, m.reason, m.id in excluded, bounded and m.id not in within, m.id == assignment.meant_for,
            m.last_seen_at, m.quarantined_until,
        )
        for m in readiness.members(session, run, spec)
    ]  # fmt: skip
    own_until = assignment.waiting_since + timedelta(seconds=spec.schedule.reassign_after_s)
    return outlook(candidates, own_until if now < own_until else None)


def stuck(session: Session, run: Run, now: datetime) -> str | None:
    """What is needed, where nobody could go on with some of a run's work."""
    return next((f"block {a.called}: {o.text}" for a, o in of_run(session, run, now) if o.kind == OutlookKind.STUCK), None)


def is_stuck(session: Session, run: Run) -> bool:
    """Whether nobody could go on with some of a run's work: the same question, without the names."""
    spec, excluded = run.spec, {frozenset(a.excluded): a for a in queries.pending_in(session, run.id)}
    for agents, assignment in excluded.items():
        if not readiness.somebody_present(session, run, spec, agents) or not exposure_budget.somebody_may(session, run, spec, assignment):
            return True
    return False


def of_run(session: Session, run: Run, now: datetime) -> Iterator[tuple[Assignment, Outlook]]:
    """For the work of a run that waits: asked once for all that may be taken by the same agents."""
    alike: dict[object, Outlook] = {}
    bounded = run.spec.exposure.max_exact_blocks is not None
    for assignment in queries.pending_in(session, run.id):
        key = assignment.id if bounded else frozenset(assignment.excluded)
        if key not in alike:
            alike[key] = of(session, run, assignment, now)
        yield assignment, alike[key]


def somebody_healthy(session: Session, run: Run, assignment: Assignment) -> bool:
    """Whether anybody is there who may take an assignment and has not failed at it too often."""
    return readiness.somebody_there(session, run, run.spec, {*assignment.excluded, *passed_over(assignment.failed)})
