"""Renewals of leases: one statement each, while the agent gets on."""

from datetime import datetime, timedelta

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Update,
    and_,
    bindparam,
    case,
    cast,
    extract,
    false,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import UtcDateTime
from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState, LeaseLost, TakenBack, check_lease
from fedcybgd.coordinator.domain.progress import Attempt
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.coordinator.services.agents import troubles
from fedcybgd.coordinator.services.path import give_up
from fedcybgd.coordinator.services.path.lease import locked
from fedcybgd.coordinator.services.records import run_files
from fedcybgd.shared.contract.assignments import RenewAnswer, RenewRequest

KNOWN = select(
    Assignment.run_id,
    Assignment.progress,
    Assignment.leased_at,
    Assignment.progressed_at,
    Assignment.patience_s,
    Assignment.ends_at,
    Run.state,
).join(Run, Run.id == Assignment.run_id)


def _renewal(says: bool) -> Update:
    """Renews a lease that is still this attempt's, unless the attempt may be over, and gives the state of its run.

    As `Attempt` has it; within the last second of its patience it may be over (SQLite has whole seconds). `says`: how far it is, too.
    """
    row, now = Assignment, bindparam("now", type_=UtcDateTime)
    before = type_coerce(row.progress, JSON)
    got_on: ColumnElement[bool] = false()
    if says:
        got_on = or_(
            bindparam("believed", type_=Boolean),
            row.progress.is_(None),
            before["phase"].as_string().is_distinct_from(bindparam("phase")),
            cast(before["step"].as_string(), BigInteger).is_distinct_from(bindparam("step", type_=BigInteger)),
            cast(before["moved"].as_string(), BigInteger).is_distinct_from(bindparam("moved", type_=BigInteger)),
        )
    waited = bindparam("clock", type_=Double) - extract("epoch", row.progressed_at)
    is_patient = or_(row.progressed_at.is_(None), row.patience_s.is_(None), waited < row.patience_s, got_on)
    lives = or_(row.ends_at.is_(None), row.ends_at > now)
    values = {
        "lease_expires_at": bindparam("expires"),
        "progressed_at": case((or_(row.progressed_at.is_(None), got_on), now), else_=row.progressed_at),
        **({"progress": bindparam("said")} if says else {}),
    }
    mine = and_(row.id == bindparam("assignment"), row.agent_id == bindparam("agent"), row.attempt == bindparam("number"))
    held = update(Assignment).where(mine, row.state == AssignmentState.LEASED, lives, is_patient).values(values)
    state = select(Run.state).where(Run.id == row.run_id).scalar_subquery()
    return held.returning(state).execution_options(synchronize_session=False)


RENEWALS = {says: _renewal(says) for says in (False, True)}


def renew(session: Session, assignment_id: str, agent_id: str, request: RenewRequest, now: datetime) -> RenewAnswer:
    """Hold it for another lease, without a lock on the run: many agents renew at the same time.

    Where the one statement changes nothing it is looked up why. Who tells a trouble is looked up too: the first time is an event.
    """
    file = run_files.of_assignment(session, assignment_id)
    if file is None:
        raise NotFound(f"there is no assignment {assignment_id!r}")
    expires, said = now + timedelta(seconds=file.lease_s), request.progress
    if said is not None and said.trouble is not None:
        return _looked_up(session, assignment_id, agent_id, request, expires, file.lease_s, now)
    given: dict[str, object] = {
        "assignment": assignment_id, "agent": agent_id, "number": _number(request), "expires": expires, "now": now, "clock": now.timestamp(),
    }  # fmt: skip
    if said is not None:
        believed = said.moved is None and said.phase != "training"
        given |= {"said": said, "believed": believed, "phase": said.phase, "step": said.step, "moved": said.moved}
    state = session.scalar(RENEWALS[said is not None], given)
    if state is None:
        return _looked_up(session, assignment_id, agent_id, request, expires, file.lease_s, now)
    return RenewAnswer(lease_seconds=file.lease_s, go_on=not RUN.is_final(state))


def _number(request: RenewRequest) -> int:
    return request.attempt if abs(request.attempt) < 2**31 else 0  # what no column can hold is no attempt, as 0 is none


def _looked_up(
    session: Session, assignment_id: str, agent_id: str, request: RenewRequest, expires: datetime, lease_s: float, now: datetime
) -> RenewAnswer:  # fmt: skip
    """The same with what is known of the attempt, or why not; an attempt that is over is taken back."""
    row = session.execute(KNOWN.where(Assignment.id == assignment_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no assignment {assignment_id!r}")
    said, attempt = request.progress, Attempt(row.leased_at, row.progressed_at, row.patience_s, row.ends_at, row.progress)
    if (why := attempt.over(said, now)) is not None:
        return _take_from(session, assignment_id, agent_id, request, lease_s, why, now)
    values: dict[str, object] = {"lease_expires_at": expires}
    if said is not None:
        values["progress"] = said
    if attempt.got_on(said) or row.progressed_at is None:
        values["progressed_at"] = now
    mine = (Assignment.id == assignment_id) & (Assignment.agent_id == agent_id) & (Assignment.attempt == _number(request))
    held = mine & (Assignment.state == AssignmentState.LEASED)
    if session.scalar(update(Assignment).where(held).values(values).returning(Assignment.id)) is None:
        assignment = session.get_one(Assignment, assignment_id)
        check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, request.attempt)
        raise LeaseLost("you do not hold this assignment any more; ask for work again")
    if said is not None and said.trouble is not None and (row.progress is None or row.progress.trouble is None):
        # The agent's row after the assignment's, as those do who judge a visit or take it back.
        troubles.tell(session, session.get_one(Assignment, assignment_id), said.trouble, now)
    return RenewAnswer(lease_seconds=lease_s, go_on=not RUN.is_final(row.state))


def _take_from(
    session: Session, assignment_id: str, agent_id: str, request: RenewRequest, lease_s: float, why: tuple[TakenBack, str], now: datetime
) -> RenewAnswer:  # fmt: skip
    assignment, run = locked(session, assignment_id)
    check_lease(assignment.state, assignment.agent_id, assignment.attempt, agent_id, request.attempt)
    give_up.failed_attempt(session, run, assignment, *why, now)
    return RenewAnswer(lease_seconds=lease_s, go_on=False, reason=why[0])
