"""The transitions of an assignment."""

from datetime import datetime, timedelta

from fedcybgd.coordinator.db import counts
from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.domain.assignment import ASSIGNMENT, AssignmentEvent, AssignmentState
from fedcybgd.coordinator.domain.diagnosis import kind_of
from fedcybgd.shared.contract.training import TrainMetrics


def lease(
    row: Assignment, agent_id: str, manifest_digest: str, now: datetime, holds: timedelta, patience: timedelta, life: timedelta
) -> None:
    """An agent has it, under the next attempt and with the emulator of this manifest."""
    if row.state == AssignmentState.PENDING:
        counts.count_of(row, "fedcoord_queue_seconds", (now - row.waiting_since).total_seconds())
    _go(row, AssignmentEvent.CLAIM)
    counts.count_of(row, "fedcoord_leases_total")
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
    counts.count_of(row, "fedcoord_attempts_failed_total", 1, kind_of(reason))
    return holder


def submit(row: Assignment, digest: str, size: int, metrics: TrainMetrics, now: datetime) -> None:
    _go(row, AssignmentEvent.SUBMIT)
    row.submitted_at, row.lease_expires_at = now, None
    row.delta_digest, row.delta_size, row.metrics = digest, size, metrics
    if row.leased_at is not None:
        counts.count_of(row, "fedcoord_visit_seconds", (now - row.leased_at).total_seconds())


def accept(row: Assignment, now: datetime) -> None:
    _go(row, AssignmentEvent.ACCEPT)
    row.judged_at = now
    _count_verdict(row, "accepted", "")


def reject(row: Assignment, reason: str, now: datetime) -> None:
    _go(row, AssignmentEvent.REJECT)
    row.judged_at, row.reason = now, reason
    _count_verdict(row, "rejected", kind_of(reason))


def _count_verdict(row: Assignment, verdict: str, reason: str) -> None:
    counts.count_of(row, "fedcoord_admissions_total", 1, verdict, reason)
    if row.submitted_at is not None and row.judged_at is not None:
        counts.count_of(row, "fedcoord_judge_seconds", (row.judged_at - row.submitted_at).total_seconds())


def undo(row: Assignment, reason: str, now: datetime) -> None:
    """What it gave, or was to give, is no part of the model; who holds it learns it when the lease is renewed."""
    _go(row, AssignmentEvent.UNDO)
    row.applied, row.reason, row.lease_expires_at, row.progress = False, reason, None, None
    row.judged_at = row.judged_at or now


def _go(row: Assignment, event: AssignmentEvent) -> None:
    row.state = ASSIGNMENT.after(row.state, event)
