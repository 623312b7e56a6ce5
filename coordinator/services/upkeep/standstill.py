"""Nothing stands still in silence: of all work that waits it is asked who can take it, and whether they are there."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.outlook import OutlookKind
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.services.path import ask_again, give_up, outlook
from fedcybgd.coordinator.services.records.events import record

PATIENCE = timedelta(seconds=3)
"""Work that waits for less is on its way to somebody"""


def to_look_after(session: Session, now: datetime) -> list[str]:
    """Ids of the runs that nobody could go on with, or that wait for somebody, and say so no longer rightly, or not yet."""
    long = Assignment.waiting_since < now - PATIENCE
    waiting = select(Assignment.run_id).where(Assignment.state == AssignmentState.PENDING, long).distinct()
    running = (Run.state == RunState.RUNNING) & (Run.id.in_(waiting) | Run.reason.is_not(None))
    paused = (Run.state == RunState.PAUSED) & Run.waits_for_agents
    runs = session.scalars(select(Run).where(running | paused).order_by(Run.id)).all()
    return [run.id for run in runs if _says_wrong(session, run, now)]


def look_after(session: Session, run_id: str, now: datetime) -> None:
    """Say whom a run waits for; pause it where nobody could go on, with what is needed; and let it go on when somebody can again."""
    run = session.get_one(Run, run_id, with_for_update=True)
    if run.state == RunState.PAUSED and run.waits_for_agents:
        if not outlook.is_stuck(session, run):
            ask_again.go_on(session, run, "somebody is there again", now)
        return
    if run.state != RunState.RUNNING:
        return
    if (needed := outlook.stuck(session, run, now)) is not None:
        give_up.halt(session, run, f"no agent is left that could try {needed}", now, waits_for_agents=True)
        return
    text = _awaited(session, run, now)
    if text is not None and run.reason is None:
        record(session, now, "warning", "run_waits", f"run {run.name} {text}", run_id=run.id)
    run.reason = text


def _says_wrong(session: Session, run: Run, now: datetime) -> bool:
    if run.state == RunState.PAUSED:
        return not outlook.is_stuck(session, run)
    return outlook.is_stuck(session, run) or _awaited(session, run, now) != run.reason


def _awaited(session: Session, run: Run, now: datetime) -> str | None:
    awaited = (f"{o.text} (block {a.called})" for a, o in outlook.of_run(session, run, now) if o.kind == OutlookKind.AWAITED)
    return next(awaited, None)
