"""Agents of other versions are served, or told why not.

Fields that only a later agent knows are left out of what it says. Of an agent of the same version or an earlier one they are mistakes.
"""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.shared.contract.versions import FROM_NEWER, SPOKEN, VERSION, Version, read
from fedcybgd.shared.contract.words import AgentMessage

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class VersionUnsupported(CoordinatorError):
    code = "version_unsupported"
    status = 426


class Versioned:
    """Adds the version of this coordinator to every answer, and refuses callers of a version that it does not speak."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (VERSION.lower().encode(), str(SPOKEN).encode())]
            await send(message)

        refusal = _refusal(scope)
        await (self._app if refusal is None else _answer(refusal))(scope, receive, versioned)


def _refusal(scope: Scope) -> VersionUnsupported | None:
    path = re.match(r"/v([0-9]{1,4})/", scope["path"])
    if path is None:
        return None
    said = dict(scope["headers"]).get(VERSION.lower().encode())
    try:
        asked = read(None if said is None else said.decode("latin-1"))
    except ValueError as error:
        return VersionUnsupported(f"the heading {VERSION}: {error}", spoken=str(SPOKEN))
    if asked.major == SPOKEN.major and int(path[1]) != SPOKEN.major:
        asked = Version(int(path[1]), 0)
    if asked.major == SPOKEN.major:
        return None
    whose = "this coordinator" if asked.major > SPOKEN.major else "the agent or command that asks"
    return VersionUnsupported(
        f"this coordinator speaks version {SPOKEN} of the protocol, and was asked in {asked}: update {whose}", spoken=str(SPOKEN), asked=str(asked)
    )  # fmt: skip


def _answer(refusal: VersionUnsupported) -> JSONResponse:
    body = {"code": refusal.code, "message": refusal.message, "detail": refusal.detail}
    return JSONResponse(body, refusal.status, {"Upgrade": f"FedCyBGD/{SPOKEN.major}"})


def understanding(kind: type[AgentMessage], handler: Handler) -> Handler:
    """A route's handler that leaves out what only a later agent knows of a message of `kind`."""

    async def handle(request: Request) -> Response:
        if read(request.headers.get(VERSION)) <= SPOKEN:
            return await handler(request)
        try:
            known = kind.model_validate_json(await request.body(), extra="ignore", context=FROM_NEWER)
        except ValidationError:
            return await handler(request)  # which says what is wrong
        body = json.dumps(known.model_dump(mode="json", exclude_unset=True)).encode()

        said: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return said.pop() if said else await request.receive()

        return await handler(Request(request.scope, receive))

    return handle
