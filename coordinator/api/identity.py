"""Every answer says which coordinator gave it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedcybgd.shared.contract.words import COORDINATOR


class Identified:
    """Adds the heading with the coordinator's id; `app.state.identity` has it from the start on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._name = COORDINATOR.lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (self._name, scope["app"].state.identity.encode())]
            await send(message)

        await self._app(scope, receive, identified)
