"""Has a client of httpx wait for the head of an answer no longer than it waits for a byte: announcements (1xx), or a byte now and then, are no answer."""

import re
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

END = re.compile(rb"\r?\n\r?\n")
ANNOUNCES = re.compile(rb"HTTP/\d\.\d 1(?!01)")


def bound_heads(client: httpx.Client) -> httpx.Client:
    """The same client; to be called before it is used."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            # httpx has no parameter for it; `tests/unit/test_heads.py` sees that it is heeded.
            transport._pool._network_backend = BoundedBackend(transport._pool._network_backend)
    return client


class BoundedBackend(httpcore.NetworkBackend):
    """Connects as another one does."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        return BoundedStream(self._backend.connect_tcp(host, port, timeout, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class BoundedStream(httpcore.NetworkStream):
    """A connection. Its time-out for reading is that of the whole head, from the last byte of the request on; and of each byte of the body."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._head: bytearray | None = None
        self._asked_at = 0.0

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)
        self._head, self._asked_at = bytearray(), time.monotonic()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._head is None:
            return self._stream.read(max_bytes, timeout)
        if timeout is not None and (timeout := self._asked_at + timeout - time.monotonic()) <= 0:
            raise httpcore.ReadTimeout("the head of an answer did not come to its end")
        data = self._stream.read(max_bytes, timeout)
        self._head += data
        while self._head is not None and (end := END.search(self._head)) is not None:
            if ANNOUNCES.match(self._head):
                del self._head[: end.end()]
            else:
                self._head = None
        return data

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return BoundedStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
