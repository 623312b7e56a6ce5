"""Whose key a request shows, asked before anything else of it is read."""

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.types import Scope

from fedcybgd.coordinator.api import signed
from fedcybgd.coordinator.api.guard import bearer
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.errors import Forbidden
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.signatures import SIGNATURE_INPUT

AT_ONCE = 4
"""Keys that are looked up at the same time; the threads of the routes are not for strangers."""


class Recognition:
    """What the walls ask: is this somebody's key? What its owner may do, the route says."""

    def __init__(self) -> None:
        self._lane = CapacityLimiter(AT_ONCE)

    async def __call__(self, scope: Scope) -> str | None:
        """A name for the owner of the key, None for one that was shut out. Raises `Unauthorized`."""
        request, state = Request(scope), scope["app"].state
        if SIGNATURE_INPUT in request.headers:
            try:
                return str((await signed.recognise(request, state.attendance, self._lane)).id)
            except Forbidden:
                return None
        key = bearer(request)
        if key.startswith(keys.OPERATOR):
            await to_thread.run_sync(_operator, state.database, key, limiter=self._lane)
            return keys.key_hash(key)
        try:
            known = await state.attendance.who(keys.key_hash(key), self._lane)
        except Forbidden:
            return None
        return str(known.id)


def _operator(database: Database, key: str) -> None:
    with database.reading() as session:
        operators.known(session, key, utcnow())
