"""Headings that tell a browser what it must not do with an answer."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGES = (
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
     b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)  # fmt: skip
ALWAYS = ((b"x-content-type-options", b"nosniff"),)
FRESH = (b"cache-control", b"no-store")


class Headed:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_headings(scope, message)]
            await send(message)

        await self._app(scope, receive, headed)


def _headings(scope: Scope, message: Message) -> list[tuple[bytes, bytes]]:
    given = {name for name, _ in message["headers"]}
    found = [*ALWAYS]
    if not scope["path"].startswith("/v1/"):
        found += PAGES
    if b"cache-control" not in given and b"etag" not in given:
        found.append(FRESH)
    return found
