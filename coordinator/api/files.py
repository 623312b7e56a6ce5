"""Sends blobs: ranges, the digest as ETag, and a count of the bytes that really went out."""

import re
from collections.abc import Awaitable, Callable
from typing import BinaryIO

from fastapi import Request, Response
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobStore
from fedcybgd.shared.contract.words import ACCEL

Sent = Callable[[int], Awaitable[None]]
CHUNK = 1 << 20
"""A quarter of the processor time of 64 KiB."""
ZERO_COPY = "http.response.zerocopysend"
"""What a server offers that passes bytes of files on by itself: an extension of ASGI. Ours says how many have `passed`."""
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class BlobResponse(Response):
    """Bytes from `start` up to `end` of an open blob, which is closed at the end; `sent` gets the number of those that went out."""

    media_type = "application/octet-stream"

    def __init__(self, blob: BinaryIO, start: int, end: int, headers: dict[str, str], status: int, sent: Sent | None) -> None:
        super().__init__(status_code=status, headers={"Content-Length": str(end - start), **headers})
        self._blob, self._start, self._left, self._sent = blob, start, end - start, sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        total = 0
        passing = scope.get("extensions", {}).get(ZERO_COPY)
        file = _number_of(self._blob) if passing is not None else None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if file is not None:
                for begin in range(self._start, end := self._start + self._left, CHUNK):
                    piece = {"file": file, "offset": begin, "count": min(CHUNK, end - begin)}
                    await send({"type": ZERO_COPY, **piece, "more_body": True})
            else:
                await run_in_threadpool(self._blob.seek, self._start)
                asked = Request(scope, receive)
                while left := self._left - total:
                    chunk = await run_in_threadpool(self._blob.read, min(CHUNK, left))
                    if not chunk:
                        raise EOFError("the blob became shorter while it was sent")
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    if await asked.is_disconnected():
                        raise ClientDisconnect
                    total += len(chunk)
            await send({"type": "http.response.body", "body": b""})
        except ClientDisconnect:
            pass
        finally:
            self._blob.close()
            if self._sent is not None:
                await self._sent(total if file is None else passing["passed"]())


def _number_of(blob: BinaryIO) -> int | None:
    """By which the system knows it, where it is an open file."""
    try:
        return blob.fileno()
    except OSError:
        return None


def blob_response(request: Request, store: BlobStore, digest: str, sent: Sent | None = None, link: str | None = None) -> Response:
    """304 to whoever has the digest already; else the bytes, or the range of them that was asked for, from here or at the `link`.

    Hashes, so it takes its time. Raises `BlobMissing` or `BlobDamaged`.
    """
    etag = f'"{digest}"'
    if link is None:
        store.check(digest)
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    size = store.size(digest)
    headers = {"ETag": etag, "Cache-Control": "private, immutable", "Accept-Ranges": "bytes"}
    wanted = _range(request, etag, size)
    start, end = wanted or (0, size)
    if wanted and start >= end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    if link is not None:
        promised = BackgroundTask(sent, end - start) if sent is not None else None
        return RedirectResponse(link, status_code=307, headers={"Cache-Control": "no-store"}, background=promised)
    if (by := _by_the_proxy(request, digest)) is not None:
        promised = BackgroundTask(sent, end - start) if sent is not None else None
        return Response(headers=headers | {"X-Accel-Redirect": by}, media_type=BlobResponse.media_type, background=promised)
    if wanted is None:
        return BlobResponse(store.open(digest), 0, size, headers, 200, sent)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return BlobResponse(store.open(digest), start, end, headers, 206, sent)


def _by_the_proxy(request: Request, digest: str) -> str | None:
    """Where a proxy that this request came through has the blob's file, and sends it, or the range of it, by itself."""
    settings: Settings = request.app.state.settings
    if settings.accel is None or settings.storage is not None or request.headers.get(ACCEL) != "yes":
        return None
    return f"{settings.accel}{digest[:2]}/{digest}"


def _range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """What is asked for, empty where there is nothing of it. None: all; so is what cannot be understood, or several ranges."""
    asked = RANGE.fullmatch(request.headers.get("range", "").strip())
    if asked is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last = asked.groups()
    if first:
        end = int(last) + 1 if last else size
        return (int(first), min(end, size)) if not last or int(first) < end else None
    return (max(0, size - int(last)), size) if last else None
