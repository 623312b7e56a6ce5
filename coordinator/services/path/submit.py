"""Step 5: takes a delta, once, whatever is repeated."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import promises
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.domain.assignment import (
    AssignmentState,
    LeaseLost,
    StaleAttempt,
    check_lease,
)
from fedcybgd.coordinator.domain.label_skew import check_counts
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.services.path import judge, lease, trained
from fedcybgd.coordinator.services.path.upload import Upload, UploadIncomplete
from fedcybgd.coordinator.services.states import assignments
from fedcybgd.coordinator.storage import BlobStore, Uploads
from fedcybgd.shared.contract.assignments import DeltaReceipt, DeltaSubmission

Clock = Callable[[], datetime]


def receipt(session: Session, assignment_id: str, agent_id: str, submission: DeltaSubmission) -> DeltaReceipt | None:
    """The answer that this very delta already got; None if it is new. Raises when it can no longer be taken."""
    assignment = session.get(Assignment, assignment_id)
    if assignment is None:
        raise NotFound(f"there is no assignment {assignment_id!r}")
    if assignment.state == AssignmentState.LEASED or assignment.state == AssignmentState.PENDING:
        check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, submission.attempt)
        return None
    if assignment.agent_id != agent_id:
        raise LeaseLost(f"you do not hold this assignment any more (it is {assignment.state}); ask for work again")
    if (assignment.attempt, assignment.delta_digest) != (submission.attempt, submission.digest):
        raise StaleAttempt("another delta was submitted for this assignment", attempt=assignment.attempt)
    return _receipt(assignment)


def take(
    database: Database, store: BlobStore, uploads: Uploads, assignment_id: str, agent_id: str, submission: DeltaSubmission, clock: Clock
) -> DeltaReceipt:
    """Take a delta that was uploaded: once, whatever is repeated. Raises for one that is not whole, or none of this assignment."""
    with database.reading() as session:
        if (done := receipt(session, assignment_id, agent_id, submission)) is not None:
            return done
    try:
        with database.reading() as session:
            form = trained.form_of(session, lease.held(session, assignment_id, agent_id))
        upload = Upload(uploads, assignment_id, agent_id, submission.digest, form.limit)
        size = upload.finish(store, form)  # hashing takes its time: outside of any transaction
    except (LeaseLost, UploadIncomplete):
        with database.reading() as session:  # a repeat was faster
            if (done := receipt(session, assignment_id, agent_id, submission)) is not None:
                return done
        raise
    with database.transaction() as session:
        taken = submit(session, assignment_id, agent_id, submission, size, clock())
    upload.discard()
    return taken


def submit(session: Session, assignment_id: str, agent_id: str, submission: DeltaSubmission, size: int, now: datetime) -> DeltaReceipt:
    """Take a delta whose bytes are stored and whose structure was checked: once, whatever is repeated."""
    assignment, run = lease.locked(session, assignment_id)
    if (done := receipt(session, assignment_id, agent_id, submission)) is not None:
        return done
    check_counts(assignment.train, submission.metrics)
    promises.promise(session)  # the agent forgets its delta when it has the receipt
    assignments.submit(assignment, submission.digest, size, submission.metrics, now)
    judge.judge(session, run, assignment, now)
    return _receipt(assignment)


def _receipt(assignment: Assignment) -> DeltaReceipt:
    assert assignment.delta_digest is not None
    return DeltaReceipt(assignment_id=assignment.id, attempt=assignment.attempt, digest=assignment.delta_digest)
