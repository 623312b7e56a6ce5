"""Operators: who they are by their keys, and how they come, change their keys, and go."""

from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Login, Operator
from fedcybgd.coordinator.domain.caller import Caller
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.errors import Conflict, Forbidden, NotFound, Unauthorized
from fedcybgd.coordinator.services.records import keys

FIRST = "owner"
"""Name of the operator that an instance begins with"""
USE_NOTED_EVERY = timedelta(minutes=1)


class OperatorRevoked(Unauthorized):
    code = "operator_revoked"


class OperatorKeyExpired(Unauthorized):
    code = "operator_key_expired"


class RoleTooLow(Forbidden):
    code = "role_too_low"


class OperatorNameTaken(Conflict):
    code = "operator_name_taken"


class LastOwner(Conflict):
    code = "last_owner"


def ensure_first(session: Session, now: datetime) -> str | None:
    """The key of the first owner if there was no operator yet; it cannot be read again later."""
    if session.scalar(select(Operator.id).limit(1)) is not None:
        return None
    return add(session, FIRST, Role.OWNER, None, now)[1]


def add(session: Session, name: str, role: Role, holds: timedelta | None, now: datetime) -> tuple[Operator, str]:
    """A new operator, and the key, which cannot be read again later. `holds`: for how long it is good; None: for good."""
    key = keys.new_key(keys.OPERATOR)
    operator = Operator(
        id=keys.new_id("opr"), name=name, role=role, key_hash=keys.key_hash(key), created_at=now, expires_at=_until(now, holds)
    )  # fmt: skip
    session.add(operator)
    try:
        session.flush()
    except IntegrityError as error:
        raise OperatorNameTaken(f"there is, or was, an operator named {name!r}; choose another name") from error
    return operator, key


def rotate(session: Session, name: str, holds: timedelta | None, now: datetime) -> tuple[Operator, str]:
    """A new key for an operator; the old one, and what is logged in with it, is void at once."""
    operator = by_name(session, name)
    if operator.revoked_at is not None:
        raise OperatorRevoked(f"operator {name} was revoked; add one under another name")
    return operator, _new_key(session, operator, _until(now, holds), now)


def rotate_own(session: Session, key: str, asked: timedelta | None, default: timedelta | None, now: datetime) -> tuple[Operator, str]:
    """A new key for whoever has this one. It ends when that would have, at the latest; an owner's may hold for longer, if he asks for it.

    Raises `Unauthorized` where the key has become void since it was looked at.
    """
    operator = known(session, key, now, lock=True)
    ends = _until(now, default if asked is None else asked)
    if operator.expires_at is not None and (asked is None or operator.role != Role.OWNER):
        ends = operator.expires_at if ends is None else min(ends, operator.expires_at)
    return operator, _new_key(session, operator, ends, now)


def revoke(session: Session, name: str, now: datetime) -> Operator:
    """Shut an operator out at once, browsers included. The last owner whose key is good stays: nobody could undo it."""
    operator = by_name(session, name)
    owners = session.scalars(
        select(Operator).where(Operator.role == Role.OWNER, Operator.revoked_at.is_(None)).order_by(Operator.id).with_for_update()
    ).all()
    good = [owner for owner in owners if owner.expires_at is None or owner.expires_at > now]
    if [owner.id for owner in good or owners] == [operator.id]:
        raise LastOwner(f"{name} is the only owner with a key that is good; make another first: fedcoord operators add NAME --role owner")
    if operator.revoked_at is None:
        operator.revoked_at = now
    _log_out(session, operator)
    return operator


def recover(session: Session, name: str, now: datetime) -> str:
    """An owner's key for whoever holds the database itself: of a new owner, or a new key of one that was there, revoked or not."""
    operator = session.scalar(select(Operator).where(Operator.name == name).with_for_update())
    if operator is None:
        return add(session, name, Role.OWNER, None, now)[1]
    operator.role, operator.revoked_at = Role.OWNER, None
    return _new_key(session, operator, None, now)


def by_name(session: Session, name: str) -> Operator:
    """An operator, locked."""
    operator = session.scalar(select(Operator).where(Operator.name == name).with_for_update())
    if operator is None:
        raise NotFound(f"there is no operator {name!r}; `fedcoord operators list` lists them")
    return operator


def enter(database: Database, key: str, address: str, now: datetime, operator: Operator | None = None) -> Caller:
    """Whose key this is: of `operator`, where it was looked up a moment ago. Raises `Unauthorized`."""
    if operator is None:
        with database.reading() as session:
            operator = known(session, key, now)
    if operator.last_used_at is None or now - operator.last_used_at >= USE_NOTED_EVERY:
        with database.transaction() as session:
            session.get_one(Operator, operator.id).last_used_at = now
    return caller_of(operator, address)


def known(session: Session, key: str, now: datetime, lock: bool = False) -> Operator:
    """The operator whose key this is. Raises `Unauthorized`."""
    found = select(Operator).where(Operator.key_hash == keys.key_hash(key))
    operator = session.scalar(found.with_for_update() if lock else found)
    if operator is None:
        what = "this key is no operator's, or no longer" if key else "this needs an operator's key (Authorization: Bearer fco_…)"
        raise Unauthorized(
            f"{what}; an owner makes a new one (`fedcoord operators rotate NAME`), or `fedcoord operators recover` on the coordinator's machine"
        )
    check(operator, now)
    return operator


def check(operator: Operator, now: datetime) -> None:
    """Raise `Unauthorized` for one whose key opens nothing any more."""
    if operator.revoked_at is not None:
        raise OperatorRevoked(f"operator {operator.name} was revoked")
    if operator.expires_at is not None and operator.expires_at <= now:
        raise OperatorKeyExpired(f"the key of operator {operator.name} has expired; an owner makes a new one: fedcoord operators rotate")


def caller_of(operator: Operator, address: str) -> Caller:
    return Caller("operator", operator.name, Role(operator.role), address)


def admitted(caller: Caller, needed: Role) -> Caller:
    """Raises `RoleTooLow` for an operator who may not do what needs the role `needed`."""
    if caller.role is None or not caller.role.may_act_as(needed):
        raise RoleTooLow(f"this needs the role {needed}; {caller.name} is {caller.role}", role=caller.role, needed=needed)
    return caller


def _new_key(session: Session, operator: Operator, ends: datetime | None, now: datetime) -> str:
    key = keys.new_key(keys.OPERATOR)
    operator.key_hash, operator.rotated_at, operator.expires_at = keys.key_hash(key), now, ends
    _log_out(session, operator)
    return key


def _log_out(session: Session, operator: Operator) -> None:
    session.execute(delete(Login).where(Login.operator_id == operator.id))


def _until(now: datetime, holds: timedelta | None) -> datetime | None:
    return None if holds is None else now + holds
