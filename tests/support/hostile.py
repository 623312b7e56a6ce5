"""An HTTP server that answers whatever a test wants: a coordinator that was taken over, a proxy, a hotel's login page."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    """Content-Length, where it is not that of the body"""
    stream: Iterator[bytes] | None = None
    """what follows the body, without a length, until it ends or the caller has had enough"""

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> "Answer":
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    @classmethod
    def page(cls, status: int, **headers: str) -> "Answer":
        return cls(status, b"<html><h1>%d</h1></html>" % status, {"Content-Type": "text/html", **headers})


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A caller that has had enough is none of its business."""


class FakeServer:
    def __init__(self, answer: Callable[[Asked], Answer], context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                given = answer(asked[-1])
                self.send_response(given.status)
                for name, value in given.headers.items():
                    self.send_header(name, value)
                if given.stream is None:
                    self.send_header("Content-Length", str(len(given.body) if given.announced is None else given.announced))
                self.end_headers()
                try:
                    self.wfile.write(given.body)
                    for piece in given.stream or ():
                        self.wfile.write(piece)
                        self.wfile.flush()
                except OSError:
                    pass  # the caller has had enough
                if given.announced is not None or given.stream is not None:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = handle_one

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(answer: Callable[[Asked], Answer], context: ssl.SSLContext | None = None) -> Iterator[FakeServer]:
    """With a `context` by HTTPS."""
    server = FakeServer(answer, context)
    try:
        yield server
    finally:
        server.close()
