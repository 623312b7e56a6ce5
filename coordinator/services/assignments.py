"""Assignments: claim, renew, give back, submit; leases that end by themselves."""

from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.db import queries
from coordinator.db.models import Agent, Assignment, Block, Round, Run
from coordinator.domain.agent import AgentState
from coordinator.domain.assignment import ASSIGNMENT, AssignmentEvent, AssignmentState, LeaseLost, StaleAttempt, check_lease, may_take
from coordinator.domain.compression import DoesNotFit, FidelityTooLow
from coordinator.domain.round import RoundState
from coordinator.domain.run import RUN, RunState
from coordinator.domain.run_file import RunFile
from coordinator.errors import NotFound
from coordinator.services import budget, emulators, offers, rounds, signals, troubles
from shared import protocol
from shared.protocol import COORDINATORS_OWN, ClaimRequest, DeltaReceipt, DeltaSubmission, RenewAnswer, RenewRequest, ReturnRequest

HEADER_ROOM = 1 << 20
"""Bytes that a delta's safetensors header may take, beyond its tensors."""


def claim(session: Session, agent_id: str, request: ClaimRequest, now: datetime) -> protocol.Assignment | None:
    """Lease an assignment to an agent: its own unfinished one again (attempt + 1), or one meant for it, or that waits longest."""
    budget.serialize(session, agent_id)
    for assignment_id in queries.leased_to(session, agent_id):
        held, run = _locked(session, assignment_id)
        if held.state != AssignmentState.LEASED or held.agent_id != agent_id:
            continue  # lapsed a moment ago
        spec = RunFile.model_validate(run.spec)
        if not RUN.is_final(run.state) and _consents(run, request) and budget.may_take(session, run, spec, held, agent_id):
            if (leased := _lease(session, held, run, agent_id, now)) is not None:
                return leased
            continue  # its emulator is being made; it stays this agent's until the lease ends
        _give_back(session, held, run, "stopping", "", now)
    # A stand-in does its own part first.
    for assignment, run in sorted(queries.pending_assignments(session), key=lambda pair: pair[0].meant_for != agent_id):
        if not _consents(run, request) or not _may_take(session, assignment, run, agent_id, now):
            continue
        # What was looked at without a lock may have changed meanwhile, so it is looked at again.
        if not _hold(session, assignment, run) or not _may_take(session, assignment, run, agent_id, now):
            continue
        if (leased := _lease(session, assignment, run, agent_id, now)) is not None:
            return leased
    return None


def _hold(session: Session, assignment: Assignment, run: Run) -> bool:
    """Lock a pending assignment, so that nobody else leases it and its round is not applied meanwhile. False if that has happened."""
    session.flush()
    free = select(Assignment.id).where(Assignment.id == assignment.id, Assignment.state == AssignmentState.PENDING)
    if session.scalar(free.with_for_update(skip_locked=True)) is None:
        return False
    session.expire_all()
    round = session.get_one(Round, (assignment.run_id, assignment.round))
    return run.state == RunState.RUNNING and round.state == RoundState.OPEN


def _consents(run: Run, request: ClaimRequest) -> bool:
    return run.id not in request.refuses and any(fnmatchcase(run.name, pattern) for pattern in request.runs)


def _may_take(session: Session, assignment: Assignment, run: Run, agent_id: str, now: datetime) -> bool:
    spec = RunFile.model_validate(run.spec)
    # Whoever came after the start may stand in for another.
    if agent_id not in run.participants and not offers.is_open_to(run, session.get_one(Agent, agent_id)):
        return False
    wait = timedelta(seconds=spec.schedule.reassign_after_s)
    leave = assignment.meant_for is None and spec.schedule.wave > 1 and _others_have_no_part(session, assignment, run, agent_id)
    if not may_take(agent_id, assignment.meant_for, assignment.excluded, assignment.waiting_since, wait, now, leave):
        return False
    return budget.may_take(session, run, spec, assignment, agent_id)


def _others_have_no_part(session: Session, assignment: Assignment, run: Run, agent_id: str) -> bool:
    """Whether an agent has a part in this wave already while active participants, who could take this one, have none."""
    members = queries.assignments_of(session, run.id, assignment.round)
    busy = {a.agent_id for a in members if a.state != AssignmentState.REJECTED}
    free = set(run.participants) - busy - set(assignment.excluded)
    if agent_id not in busy or not free:
        return False
    return session.scalar(select(Agent.id).where(Agent.id.in_(free), Agent.state == AgentState.ACTIVE).limit(1)) is not None


def _lease(session: Session, assignment: Assignment, run: Run, agent_id: str, now: datetime) -> protocol.Assignment | None:
    """Lease it with the emulator that this agent gets; None, and nothing is changed, while that is being made or does not fit."""
    spec = RunFile.model_validate(run.spec)
    try:
        emulator = emulators.emulator_for(session, run, spec, assignment, session.get_one(Agent, agent_id))
    except FidelityTooLow as error:
        signals.turn_down(session, assignment.id, None, error.message)
        return None
    if isinstance(emulator, DoesNotFit):
        signals.turn_down(session, assignment.id, agent_id, emulator.reason)
        return None
    if emulator.manifest is None:
        return None
    lease = timedelta(seconds=spec.lease_s)
    assignment.manifest = emulator.manifest.model_dump()
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.CLAIM)
    assignment.attempt += 1
    assignment.agent_id = agent_id
    assignment.leased_at, assignment.lease_expires_at = now, now + lease
    assignment.reason, assignment.progress = None, None
    settings = protocol.TrainSettings.model_validate(assignment.train)
    return protocol.Assignment(
        assignment_id=assignment.id, attempt=assignment.attempt, lease_seconds=lease.total_seconds(), run_id=run.id, run_name=run.name,
        round=assignment.round, cycle=session.get_one(Round, (run.id, assignment.round)).cycle, block=assignment.block,
        manifest=emulator.manifest, train=settings, delta_codec=spec.delta.codec, error_feedback=spec.delta.error_feedback,
        max_delta_bytes=max_delta_bytes(session, assignment),
    )  # fmt: skip


def turned_down(session: Session, assignment_id: str, agent_id: str | None, reason: str) -> None:
    """A claim found that no emulator is right: for one agent, who is not asked again in this round, or (None) for anybody."""
    assignment, run = _locked(session, assignment_id)
    if assignment.state != AssignmentState.PENDING:
        return
    if agent_id is None:
        rounds.pause(session, run, f"block {assignment.block}: {reason}")
    elif agent_id not in assignment.excluded:
        rounds.exclude(session, run, assignment, agent_id, reason)


def expected_tensors(session: Session, assignment: Assignment) -> dict[str, tuple[int, ...]]:
    """Name → shape of what a delta of this assignment must hold."""
    names = [ref.block for ref in rounds.trained_refs(assignment)]
    blocks = session.scalars(select(Block).where(Block.run_id == assignment.run_id, Block.name.in_(names)))
    return {tensor["name"]: tuple(tensor["shape"]) for block in blocks for tensor in block.tensors}


def delta_codec(session: Session, assignment: Assignment) -> protocol.DeltaCodec:
    """How a delta of this assignment must travel."""
    return RunFile.model_validate(session.get_one(Run, assignment.run_id).spec).delta.codec


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
        if request.progress.trouble is not None:
            troubles.tell(session, assignment, request.progress.trouble, now)
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
    if reason in COORDINATORS_OWN:
        rounds.pause(session, run, f"block {assignment.block}: {reason}: {message}; no agent can mend it")


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


def submit(session: Session, assignment_id: str, agent_id: str, submission: DeltaSubmission, size: int, now: datetime) -> DeltaReceipt:
    """Take a delta whose bytes are stored and whose structure was checked: once, whatever is repeated."""
    assignment, run = _locked(session, assignment_id)
    if (done := receipt(session, assignment_id, agent_id, submission)) is not None:
        return done
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.SUBMIT)
    assignment.submitted_at, assignment.lease_expires_at = now, None
    assignment.delta_digest, assignment.delta_size = submission.digest, size
    assignment.metrics = submission.metrics.model_dump(mode="json")
    rounds.judge(session, run, assignment)
    return _receipt(assignment)


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


def release_all(session: Session, agent_id: str, now: datetime) -> None:
    """Give back what a revoked agent holds, and let others have what was meant for it."""
    for assignment_id in queries.leased_to(session, agent_id):
        assignment, run = _locked(session, assignment_id)
        if assignment.state == AssignmentState.LEASED:
            _give_back(session, assignment, run, "stopping", "", now)
    leave_to_others(session, agent_id)


def leave_to_others(session: Session, agent_id: str) -> None:
    """What is meant for an agent that does not come is anybody's."""
    session.flush()
    waiting = (Assignment.meant_for == agent_id) & (Assignment.state == AssignmentState.PENDING)
    if count := len(session.scalars(select(Assignment.id).where(waiting)).all()):
        session.execute(update(Assignment).where(waiting).values(meant_for=None))
        signals.wake_any(session, count)


def offer_overdue(session: Session, now: datetime) -> None:
    """Let others ask for work that its own agent has not fetched for too long."""
    for assignment, run in queries.pending_assignments(session):
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
