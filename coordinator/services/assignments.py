"""Assignments: claim, renew, give back, submit; leases that end by themselves."""

from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.db import queries
from coordinator.db.models import Assignment, Block, Run
from coordinator.domain.assignment import ASSIGNMENT, AssignmentEvent, AssignmentState, LeaseLost, StaleAttempt, check_lease, may_take
from coordinator.domain.run import RUN
from coordinator.domain.run_file import RunFile
from coordinator.errors import NotFound
from coordinator.services import rounds, signals
from shared import protocol
from shared.protocol import ClaimRequest, DeltaReceipt, DeltaSubmission, Manifest, RenewAnswer, RenewRequest, ReturnRequest

HEADER_ROOM = 1 << 20
"""Bytes that a delta's safetensors header may take, beyond its tensors."""


def claim(session: Session, agent_id: str, request: ClaimRequest, now: datetime) -> protocol.Assignment | None:
    """Lease an assignment to an agent: its own unfinished one again (attempt + 1), or the one that waits longest for it."""
    for assignment_id in queries.leased_to(session, agent_id):
        held, run = _locked(session, assignment_id)
        if held.state != AssignmentState.LEASED or held.agent_id != agent_id:
            continue  # lapsed a moment ago
        if not RUN.is_final(run.state) and _consents(run, request):
            return _lease(session, held, run, agent_id, now)
        _give_back(session, held, run, "stopping", "", now)
    for assignment, run in queries.pending_assignments(session):
        if _consents(run, request) and _may_take(assignment, run, agent_id, now):
            return _lease(session, assignment, run, agent_id, now)
    return None


def _consents(run: Run, request: ClaimRequest) -> bool:
    return run.id not in request.refuses and any(fnmatchcase(run.name, pattern) for pattern in request.runs)


def _may_take(assignment: Assignment, run: Run, agent_id: str, now: datetime) -> bool:
    spec = RunFile.model_validate(run.spec)
    # Whoever enrolled after the start may stand in for another, if the run is open to all.
    if agent_id not in run.participants and spec.agents != "all":
        return False
    wait = timedelta(seconds=spec.schedule.reassign_after_s)
    return may_take(agent_id, assignment.meant_for, assignment.excluded, assignment.waiting_since, wait, now)


def _lease(session: Session, assignment: Assignment, run: Run, agent_id: str, now: datetime) -> protocol.Assignment:
    lease = timedelta(seconds=RunFile.model_validate(run.spec).lease_s)
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.CLAIM)
    assignment.attempt += 1
    assignment.agent_id = agent_id
    assignment.leased_at, assignment.lease_expires_at = now, now + lease
    assignment.reason, assignment.progress = None, None
    settings = protocol.TrainSettings.model_validate(assignment.train)
    return protocol.Assignment(
        assignment_id=assignment.id, attempt=assignment.attempt, lease_seconds=lease.total_seconds(), run_id=run.id, run_name=run.name,
        round=assignment.round, cycle=assignment.round // max(1, len(run.trained_blocks)), block=assignment.block,
        manifest=Manifest.model_validate(assignment.manifest), train=settings, max_delta_bytes=max_delta_bytes(session, assignment),
    )  # fmt: skip


def expected_tensors(session: Session, assignment: Assignment) -> dict[str, tuple[int, ...]]:
    """Name → shape of what a delta of this assignment must hold."""
    names = [ref.block for ref in rounds.trained_refs(assignment)]
    blocks = session.scalars(select(Block).where(Block.run_id == assignment.run_id, Block.name.in_(names)))
    return {tensor["name"]: tuple(tensor["shape"]) for block in blocks for tensor in block.tensors}


def max_delta_bytes(session: Session, assignment: Assignment) -> int:
    """The most bytes that a delta may have: float32 tensors and a header."""
    names = [ref.block for ref in rounds.trained_refs(assignment)]
    sizes = session.scalars(select(Block.num_parameters).where(Block.run_id == assignment.run_id, Block.name.in_(names)))
    return 4 * sum(sizes) + HEADER_ROOM


def held(session: Session, assignment_id: str, agent_id: str) -> Assignment:
    """The assignment if this agent holds its lease; raises `NotFound` or `LeaseLost`."""
    assignment = session.get(Assignment, assignment_id)
    if assignment is None:
        raise NotFound(f"there is no assignment {assignment_id!r}")
    check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, assignment.attempt)
    return assignment


def state_of(session: Session, assignment_id: str, agent_id: str) -> protocol.AssignmentState:
    """What became of an assignment that this agent has or had."""
    assignment = session.get(Assignment, assignment_id)
    if assignment is None or agent_id not in (assignment.agent_id, assignment.meant_for):
        raise NotFound(f"you have no assignment {assignment_id!r}")
    return protocol.AssignmentState(
        assignment_id=assignment.id, state=assignment.state, reason=assignment.reason, attempt=assignment.attempt
    )


def renew(session: Session, assignment_id: str, agent_id: str, request: RenewRequest, now: datetime) -> RenewAnswer:
    assignment, run = _locked(session, assignment_id)
    check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, request.attempt)
    lease = timedelta(seconds=RunFile.model_validate(run.spec).lease_s)
    assignment.lease_expires_at = now + lease
    if request.progress is not None:
        assignment.progress = request.progress.model_dump()
    return RenewAnswer(lease_seconds=lease.total_seconds(), go_on=not RUN.is_final(run.state))


def give_back(session: Session, assignment_id: str, agent_id: str, request: ReturnRequest, now: datetime) -> Assignment:
    assignment, run = _locked(session, assignment_id)
    check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, request.attempt)
    _give_back(session, assignment, run, request.reason, request.message, now)
    return assignment


def _give_back(session: Session, assignment: Assignment, run: Run, reason: str, message: str, now: datetime) -> None:
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.GIVE_BACK)
    rounds.failed_attempt(session, run, assignment, reason, message, now)


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


def submit(
    session: Session, assignment_id: str, agent_id: str, submission: DeltaSubmission, size: int, now: datetime
) -> tuple[DeltaReceipt, bool]:
    """Take a delta whose bytes are stored and whose structure was checked: once, whatever is repeated. Says whether it is new."""
    assignment, run = _locked(session, assignment_id)
    if (done := receipt(session, assignment_id, agent_id, submission)) is not None:
        return done, False
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.SUBMIT)
    assignment.submitted_at, assignment.lease_expires_at = now, None
    assignment.delta_digest, assignment.delta_size = submission.digest, size
    assignment.metrics = submission.metrics.model_dump(mode="json")
    rounds.judge(session, run, assignment)
    return _receipt(assignment), True


def _receipt(assignment: Assignment) -> DeltaReceipt:
    assert assignment.delta_digest is not None
    return DeltaReceipt(assignment_id=assignment.id, attempt=assignment.attempt, digest=assignment.delta_digest)


def lapse(session: Session, now: datetime) -> None:
    """Take back the leases that ended: the work waits again, under the next attempt."""
    ended = (Assignment.state == AssignmentState.LEASED) & (Assignment.lease_expires_at < now)
    for assignment_id in session.scalars(select(Assignment.id).where(ended).order_by(Assignment.id)).all():
        assignment, run = _locked(session, assignment_id)
        if assignment.state == AssignmentState.LEASED and assignment.lease_expires_at is not None and assignment.lease_expires_at < now:
            assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.LAPSE)
            rounds.failed_attempt(session, run, assignment, "lease_lapsed", "the agent did not renew its lease", now)


def extend_all(session: Session, now: datetime) -> None:
    """At the coordinator's start: no lease may end because the coordinator was away."""
    query = select(Assignment, Run).join(Run, Run.id == Assignment.run_id).where(Assignment.state == AssignmentState.LEASED)
    for assignment, run in session.execute(query):
        assignment.lease_expires_at = now + timedelta(seconds=RunFile.model_validate(run.spec).lease_s)


def release_all(session: Session, agent_id: str, now: datetime) -> None:
    """Give back what a revoked agent holds, and let others have what was meant for it."""
    for assignment_id in queries.leased_to(session, agent_id):
        assignment, run = _locked(session, assignment_id)
        if assignment.state == AssignmentState.LEASED:
            _give_back(session, assignment, run, "stopping", "", now)
    session.flush()
    waiting = (Assignment.meant_for == agent_id) & (Assignment.state == AssignmentState.PENDING)
    session.execute(update(Assignment).where(waiting).values(meant_for=None))


def offer_overdue(session: Session, now: datetime) -> None:
    """Let others ask for work that its own agent has not fetched for too long."""
    for assignment, run in queries.pending_assignments(session, lock=False):
        wait = timedelta(seconds=RunFile.model_validate(run.spec).schedule.reassign_after_s)
        if assignment.meant_for is not None and now - assignment.waiting_since >= wait:
            signals.wake_any(session)


def _locked(session: Session, assignment_id: str) -> tuple[Assignment, Run]:
    """An assignment and its run, both locked; always the run first, so that two requests cannot wait for each other."""
    run_id = session.scalar(select(Assignment.run_id).where(Assignment.id == assignment_id))
    if run_id is None:
        raise NotFound(f"there is no assignment {assignment_id!r}")
    run = session.get_one(Run, run_id, with_for_update=True)
    return session.get_one(Assignment, assignment_id, with_for_update=True), run
