"""The transitions of an assignment."""

from datetime import datetime, timedelta

from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.domain.assignment import ASSIGNMENT, AssignmentEvent
from fedcybgd.shared.contract.training import TrainMetrics


def lease(
    row: Assignment, agent_id: str, manifest_digest: str, now: datetime, holds: timedelta, patience: timedelta, life: timedelta
) -> None:
    """An agent has it, under the next attempt and with the emulator of this manifest."""
    _go(row, AssignmentEvent.CLAIM)
    row.attempt += 1
    row.agent_id, row.manifest_digest = agent_id, manifest_digest
    row.leased_at, row.lease_expires_at = now, now + holds
    row.progressed_at, row.patience_s, row.ends_at = now, patience.total_seconds(), now + life
    row.reason, row.progress = None, None


def take_back(row: Assignment, event: AssignmentEvent, reason: str, now: datetime) -> str | None:
    """It waits again, whatever was done of it; returns whose it was."""
    _go(row, event)
    holder = row.agent_id
    row.agent_id, row.lease_expires_at, row.progress = None, None, None
    row.progressed_at, row.patience_s, row.ends_at = None, None, None
    row.delta_digest, row.delta_size, row.manifest_digest = None, None, None
    row.waiting_since, row.reason = now, reason
    return holder


def submit(row: Assignment, digest: str, size: int, metrics: TrainMetrics, now: datetime) -> None:
    _go(row, AssignmentEvent.SUBMIT)
    row.submitted_at, row.lease_expires_at = now, None
    row.delta_digest, row.delta_size, row.metrics = digest, size, metrics


def accept(row: Assignment, now: datetime) -> None:
    _go(row, AssignmentEvent.ACCEPT)
    row.judged_at = now


def reject(row: Assignment, reason: str, now: datetime) -> None:
    _go(row, AssignmentEvent.REJECT)
    row.judged_at, row.reason = now, reason


def undo(row: Assignment, reason: str, now: datetime) -> None:
    """What it gave, or was to give, is no part of the model; who holds it learns it when the lease is renewed."""
    _go(row, AssignmentEvent.UNDO)
    row.applied, row.reason, row.lease_expires_at, row.progress = False, reason, None, None
    row.judged_at = row.judged_at or now


def _go(row: Assignment, event: AssignmentEvent) -> None:
    row.state = ASSIGNMENT.after(row.state, event)
