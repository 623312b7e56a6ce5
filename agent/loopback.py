"""A port on which this machine alone is answered: nothing can be changed by it, and nobody else's page in a browser can read it."""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fedcybgd.agent.errors import ConfigError

LOOPBACK = "127.0.0.1"
NAMES = {LOOPBACK, "localhost"}
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
Answers = Mapping[str, tuple[str, Callable[[], str]]]
"""path → kind of content, and what gives it"""


class LoopbackPort:
    """Answers `GET` of a few paths on the loopback address, in a thread of its own, until it is closed."""

    def __init__(self, port: int, option: str, answers: Answers, headers: Mapping[str, str] | None = None) -> None:
        """`port` 0 takes a free one. Raises `ConfigError`, which names the option, where the port cannot be had."""
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), _handler(answers, {**HEADERS, **(headers or {})}))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {LOOPBACK}:{port}: {error}; choose another {option}") from error
        self._server.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}{next(iter(answers))}"
        """of the first path"""
        threading.Thread(target=self._server.serve_forever, name=option.lstrip("-"), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(answers: Answers, headers: Mapping[str, str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def version_string(self) -> str:
            return "fedagent"

        def do_GET(self) -> None:
            # A page in a browser of this machine could have its own name point here: it is not asked for by that.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in NAMES or self.path not in answers:
                self.send_error(404)
                return
            kind, text = answers[self.path]
            body = text().encode()
            self.send_response(200)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: it is asked every few seconds."""

    return Handler
