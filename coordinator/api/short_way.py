"""The short way of a claim: ten thousand idle agents walk it all the time, past the router's tables and FastAPI's dependencies."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from fedcybgd.coordinator.api.assignments import DAEMON_WORD, claim, router
from fedcybgd.coordinator.api.route import guard_of
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.versions import SPOKEN, VERSION, read
from fedcybgd.shared.contract.words import API, DAEMON, MAX_WAIT_S, OFFERS

QUERY = re.compile(rb"wait=([0-9]{1,2}(?:\.[0-9]{1,20})?)")


@dataclass(frozen=True, slots=True)
class ClaimAsked:
    body: ClaimRequest
    wait: float
    daemon: str | None


class ShortWay:
    """Calls the endpoint of a claim as its route does. What is not as every agent writes it takes the long way, which says what is wrong."""

    def __init__(self, route: APIRoute) -> None:
        self._guard, self._long = guard_of(route), route.app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await self._guard.admit(request)
        data = await request.body()
        asked = asked_by(request, data)
        if asked is None:
            await self._long(scope, _once_more(data, receive), send)
            return
        state, response = scope["app"].state, Response()
        answer = await claim(
            request, asked.body, request.state.agent, state.attendance, state.database, state.waiting, state.settings, response, asked.wait, asked.daemon
        )  # fmt: skip
        if not isinstance(answer, Response):
            answer = Response(answer.model_dump_json(), headers={OFFERS: response.headers[OFFERS]}, media_type="application/json")
        await answer(scope, receive, send)


def short_way() -> Route:
    """Stands before all other routes. What the API says of claims is said by the long one."""
    route = next(route for route in router.routes if isinstance(route, APIRoute) and route.endpoint is claim)
    return Route(f"{API}{route.path}", ShortWay(route), methods=["POST"], include_in_schema=False)


def asked_by(request: Request, data: bytes) -> ClaimAsked | None:
    """None where it is not written as every agent writes it, or an agent of a later version has."""
    query, headings = QUERY.fullmatch(request.scope["query_string"]), request.headers
    daemon = headings.get(DAEMON)
    if query is None or headings.get("content-type") != "application/json" or read(headings.get(VERSION)) > SPOKEN:
        return None
    if (wait := float(query[1])) > MAX_WAIT_S or (daemon is not None and re.fullmatch(DAEMON_WORD, daemon) is None):
        return None
    try:
        return ClaimAsked(ClaimRequest.model_validate_json(data), wait, daemon)
    except ValidationError:
        return None


def _once_more(data: bytes, receive: Receive) -> Callable[[], Any]:
    """A body that was read already, and then what comes after it."""
    said: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

    async def again() -> Message:
        return said.pop() if said else await receive()

    return again
