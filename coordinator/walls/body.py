"""The body of a request: counted while it comes, looked at before anything parses it."""

import re
from itertools import accumulate

from starlette.types import Message, Receive

from fedcybgd.coordinator.errors import CoordinatorError, TooLarge

DEEPEST = 64
"""Nesting of JSON; a run file has about five levels."""
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
OTHER = bytes(sorted(set(range(256)) - set(b"[]{}")))
DEPTH = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


class TooDeep(CoordinatorError):
    code = "too_deep"
    status = 400


class Body:
    def __init__(self, headings: dict[bytes, bytes], receive: Receive, most: int | None) -> None:
        self._receive = receive
        self._most = most
        length = headings.get(b"content-length", b"0")
        self._announced = int(length) if length.isdigit() else 0
        self.whole = not self._announced and b"transfer-encoding" not in headings
        """nothing of it is still to come"""
        self._kept: Message | None = None

    async def collect(self) -> bytes | None:
        """All of it, which `receive` gives once more; None: whoever asked has gone. Raises `TooLarge` before the first byte where its length was announced."""
        assert self._most is not None
        if self._announced > self._most:
            raise self._too_large()
        data = bytearray()
        while not self.whole:
            message = await self._receive()
            if message["type"] != "http.request":
                return None
            data += message.get("body", b"")
            if len(data) > self._most:
                raise self._too_large()
            self.whole = not message.get("more_body", False)
        if data:
            self._kept = {"type": "http.request", "body": bytes(data), "more_body": False}
        return bytes(data)

    async def receive(self) -> Message:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.whole = True
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(f"a body has at most {self._most} bytes here", limit=self._most)


def check_depth(data: bytes) -> None:
    """Raise `TooDeep` for JSON that is nested deeper than any message is; one that is no JSON at all is left to the parser."""
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    brackets = STRING.sub(b"", data).translate(None, OTHER)
    if max(accumulate(map(DEPTH.__getitem__, brackets)), default=0) > DEEPEST:
        raise TooDeep(f"JSON may be nested {DEEPEST} levels deep here")
