"""Whose key a request shows, asked before anything else of it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.types import Scope

from fedcybgd.coordinator.api import signed
from fedcybgd.coordinator.api.guard import bearer
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Operator
from fedcybgd.coordinator.db.outage import DatabaseAway, is_away
from fedcybgd.coordinator.errors import Forbidden, Unauthorized
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.signatures import SIGNATURE_INPUT

AT_ONCE = 4
"""Keys that are looked up at the same time; the threads of the routes are not for strangers."""


@dataclass(frozen=True)
class Recognised:
    """Who seems to call, and how he proves it where the key alone does not."""

    caller: str
    prove: Callable[[bytes | None], None] | None = None


class Recognition:
    """What the walls ask: is this somebody's key? What its owner may do, the route says."""

    def __init__(self) -> None:
        self._lane = CapacityLimiter(AT_ONCE)

    async def __call__(self, scope: Scope) -> Recognised | None:
        """A name for the owner of the key, None for one that was shut out. Raises `Unauthorized`, and `DatabaseAway`."""
        try:
            return await self._owner(scope)
        except Exception as error:  # no route is reached yet, nor what answers its errors
            if not is_away(error):
                raise
            scope["app"].state.outages.say(error)
            raise DatabaseAway(error) from error

    async def _owner(self, scope: Scope) -> Recognised | None:
        request, state = Request(scope), scope["app"].state
        if SIGNATURE_INPUT in request.headers:
            try:
                known = await signed.recognise(request, state.attendance, self._lane)
            except Forbidden:
                return None
            state.replays.check(request.state.signature)
            return Recognised(str(known.id), partial(signed.prove, request, state.replays))
        key = bearer(request)
        if key.startswith(keys.OPERATOR):
            operator = await to_thread.run_sync(_operator, state.database, key, limiter=self._lane)
            if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
                request.state.operator = operator  # for the guard: no body is waited for meanwhile that could outlast the key
            return Recognised(keys.key_hash(key))
        try:
            return Recognised((await signed.by_secret(key, state.attendance, self._lane)).id)
        except Forbidden:
            return None
        except signed.SignatureMissing:
            raise
        except Unauthorized as error:
            if key.startswith(keys.AGENT):
                raise
            said = "that is no key of this system: an operator's begins with fco_, an agent's with fca_; is all of it there?"
            raise Unauthorized(said) from error


def _operator(database: Database, key: str) -> Operator:
    with database.reading() as session:
        return operators.known(session, key, utcnow())
