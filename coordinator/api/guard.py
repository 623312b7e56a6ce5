"""What a route asks of its caller. It is looked at before a byte of the body is."""

from abc import ABC, abstractmethod
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.api import acts, signed
from fedcybgd.coordinator.attendance import Attendance, Known
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.domain.caller import NOBODY, Caller
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.shared.contract.signatures import SIGNATURE_INPUT

_scheme = HTTPBearer(
    auto_error=False, description="an operator's key (fco_…), or the secret of an agent that does not sign its requests (fca_…)"
)
Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]


class Guard(ABC):
    """Each route depends on exactly one."""

    word: str
    """who may ask, for people"""

    @abstractmethod
    async def admit(self, request: Request) -> None:
        """Say in `request.state.caller` who asks. Raises `Unauthorized` and `Forbidden`."""


class Anyone(Guard):
    """Needs no key."""

    word = "none"

    async def admit(self, request: Request) -> None:
        request.state.caller = Caller(NOBODY.kind, address=address_of(request))

    async def __call__(self) -> None: ...


class AnAgent(Guard):
    """Needs an agent's signature, or the secret of one that does not sign yet."""

    word = "agent"

    async def admit(self, request: Request) -> None:
        # A transaction of its own, if any, closed before the route begins: a long poll must not hold one.
        attendance: Attendance = request.app.state.attendance
        if SIGNATURE_INPUT in request.headers:
            known = await signed.admitted(request, attendance)
        else:
            known = await signed.by_secret(bearer(request), attendance)
        request.state.agent, request.state.caller = known, Caller("agent", known.name, address=address_of(request))

    async def __call__(self, request: Request, _given: Given) -> Known:
        known: Known = request.state.agent
        return known


async def still_an_agent(request: Request) -> None:
    """Raises as the guard did not if the key has become void since: a body that comes in its own time may outlast it."""
    attendance: Attendance = request.app.state.attendance
    if SIGNATURE_INPUT in request.headers:
        await attendance.who(request.state.signature.key_id)
    else:
        await signed.by_secret(bearer(request), attendance)


def still_an_operator(session: Session, request: Request, needed: Role) -> None:
    """The same, of an operator who could do what needs the role `needed`."""
    caller = operators.caller_of(operators.known(session, bearer(request), utcnow()), address_of(request))
    operators.admitted(caller, needed)


class AnOperator(Guard):
    """Needs the key of an operator of this role, or of one that may do more."""

    def __init__(self, role: Role) -> None:
        self.role, self.word = role, role.value

    async def admit(self, request: Request) -> None:
        key, database = bearer(request), request.app.state.database
        found = getattr(request.state, "operator", None)
        who = await run_in_threadpool(operators.enter, database, key, address_of(request), utcnow(), found)
        try:
            request.state.caller = operators.admitted(who, self.role)
        except operators.RoleTooLow as error:
            act = f"{request.method} {request.url.path}"
            await run_in_threadpool(acts.note_refusal, database, request, who, act, "", error.code)
            raise

    async def __call__(self, _given: Given) -> None: ...


def bearer(request: Request) -> str:
    """The key that came along. Raises `Unauthorized`."""
    scheme, key = get_authorization_scheme_param(request.headers.get("Authorization"))
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("give a key: Authorization: Bearer …")
    return key.strip()


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""
