"""The transitions of a run."""

from datetime import datetime

from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.domain.run import RUN, RunEvent


def prepare(row: Run) -> None:
    """Its blocks and its head are there: it may be started."""
    row.state = RUN.after(row.state, RunEvent.PREPARE)  # the same one
    row.prepared = True


def start(row: Run, now: datetime) -> None:
    _go(row, RunEvent.START, now)
    row.started_at = now


def pause(row: Run, reason: str, now: datetime, waits_for_agents: bool = False) -> None:
    """`waits_for_agents`: it goes on by itself when somebody is there to ask."""
    _go(row, RunEvent.PAUSE, now)
    row.reason, row.waits_for_agents = reason, waits_for_agents


def resume(row: Run, now: datetime) -> None:
    _go(row, RunEvent.RESUME, now)
    row.reason, row.waits_for_agents = None, False


def undo(row: Run, rounds_done: int, reason: str, now: datetime) -> None:
    """It is where it was after so many rounds, and waits for somebody who resumes it."""
    _go(row, RunEvent.UNDO, now)
    row.rounds_done, row.reason, row.waits_for_agents = rounds_done, reason, False


def finish(row: Run, reason: str | None, now: datetime) -> None:
    """`reason`: why it has ended before its rounds were done."""
    _go(row, RunEvent.FINISH, now)
    row.reason, row.ended_at = reason, now


def fail(row: Run, reason: str, now: datetime) -> None:
    _go(row, RunEvent.FAIL, now)
    row.reason, row.ended_at = reason, now


def cancel(row: Run, now: datetime) -> None:
    _go(row, RunEvent.CANCEL, now)
    row.reason, row.ended_at = "cancelled by the operator", now


def _go(row: Run, event: RunEvent, now: datetime) -> None:
    before, row.state = row.state, RUN.after(row.state, event)
    if row.state != before:
        row.state_since = now
