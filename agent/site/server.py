"""The port of a site cache: it answers `GET` of shards by their digests, to agents that sign, and nothing else."""

import contextlib
import logging
import re
import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fedcybgd.agent.errors import ConfigError, Unreachable
from fedcybgd.agent.site.shards import NoRoom, Reading, ShardCut, SiteShards
from fedcybgd.agent.site.upstream import PassedOn, Refused, Upstream
from fedcybgd.shared.contract.signatures import SIGNATURE, SIGNATURE_INPUT, read_parameters, read_signature
from fedcybgd.shared.contract.versions import VERSION
from fedcybgd.shared.contract.words import API, SITE_CACHE
from fedcybgd.shared.host.counters import Counters
from fedcybgd.shared.host.rarely import Rarely
from fedcybgd.shared.host.watchdog import Watchdog

log = logging.getLogger("fedagent.site")
MOST, MOST_EACH = 128, 32
"""Connections at once, and of one address"""
SILENT_S = 30.0
"""Without a byte of a request, or without taking what was sent, for so long a connection is ended."""
PLACE = re.compile(rf"{API}/assignments/(?P<assignment>[a-z]{{1,20}}_[0-9a-f]{{16}})/shards/(?P<digest>[0-9a-f]{{64}})", re.ASCII)
FROM = re.compile(r"bytes=([0-9]{1,16})-")
PASSED_ON = (SIGNATURE_INPUT, SIGNATURE, VERSION)
"""The only headings of a request that go to the coordinator"""
SECRET = ("Authorization", "Cookie", "Proxy-Authorization")


class CachePort:
    """Serves in threads of its own until it is closed."""

    def __init__(
        self,
        address: tuple[str, int],
        upstream: Upstream,
        shards: SiteShards,
        counters: Counters,
        tls: ssl.SSLContext | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Raises `ConfigError` where the port cannot be had."""
        watchdog = watchdog or Watchdog()
        try:
            self._server = _Server(address, _handler(upstream, shards, counters), tls, watchdog.alive)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {address[0]}:{address[1]}: {error}; choose another --host or --port") from error
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"{'http' if tls is None else 'https'}://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="site-cache", daemon=True).start()
        watchdog.ready()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None, alive: Callable[[], None]
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._tls, self._alive, self._lock, self._open = tls, alive, threading.Lock(), Counter[str]()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # that of HTTPServer asks the resolver for a name that nobody needs

    def service_actions(self) -> None:
        self._alive()  # twice a second, as long as it takes connections

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self._tls is not None:  # in its own thread, with the first byte that is read
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, _: Any, client_address: Any) -> bool:
        with self._lock:
            if self._open.total() >= MOST or self._open[client_address[0]] >= MOST_EACH:
                return False
            self._open[client_address[0]] += 1
            return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open[client_address[0]] -= 1
                self._open += Counter()  # without those that have none

    def handle_error(self, _: Any, client_address: Any) -> None:
        log.debug("a connection of %s has ended", client_address[0], exc_info=True)


def _handler(upstream: Upstream, shards: SiteShards, counters: Counters) -> type[BaseHTTPRequestHandler]:
    away = Rarely()

    class Handler(BaseHTTPRequestHandler):
        timeout = SILENT_S

        def version_string(self) -> str:
            return "fedagent"

        def do_GET(self) -> None:
            asked = self._asked()
            if asked is None:
                return
            try:
                with shards.reading(asked) as reading:
                    self._send(reading)
            except Refused as error:
                self._say(error.status if 400 <= error.status < 500 else 502, error.body, "refused", error.headers)
            except Unreachable as error:
                if away.is_due():
                    log.warning("%s", error.message)
                self._say(502, b"the coordinator is not to be had from here", "failed")
            except NoRoom:
                self._say(507, b"beside what is being read there is no room", "failed")
            except (ConnectionError, TimeoutError) as error:
                log.debug("who read %s is gone: %s", asked.digest[:12], error)
                self.close_connection = True
            except OSError as error:
                log.warning("%s was not served: %s", asked.digest[:12], error)
                self.close_connection = True

        def _asked(self) -> PassedOn | None:
            """What is asked for; None, and an answer, where that is no shard, or nobody who signs asks."""
            place = PLACE.fullmatch(self.path)
            if place is None:
                self._say(404, b"only shards are here, by their digests", "refused")
            elif any(name in self.headers for name in SECRET):
                self._say(400, b"send no secret here: sign the request", "refused")
            elif not self._is_signed():
                self._say(401, b"sign the request", "refused")
            else:
                headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
                return PassedOn(place["assignment"], place["digest"], headers)
            return None

        def _is_signed(self) -> bool:
            """As far as that can be told without the key: whose it is, the coordinator knows."""
            try:
                said = read_parameters(self.headers.get(SIGNATURE_INPUT, ""))
                read_signature(self.headers.get(SIGNATURE, ""))
            except ValueError:
                return False
            return not said.with_body and re.fullmatch(r"[0-9.]{1,20}", self.headers.get(VERSION, "1")) is not None

        def _send(self, reading: Reading) -> None:
            wanted = FROM.fullmatch(self.headers.get("Range", ""))
            offset, size = int(wanted[1]) if wanted else 0, reading.size
            if wanted and offset >= size:
                self._say(416, b"", "refused", {"Content-Range": f"bytes */{size}"})
                return
            self.send_response(206 if wanted else 200)
            for name, value in {
                "Content-Type": "application/octet-stream", "Content-Length": str(size - offset), "Cache-Control": "private, no-store",
                SITE_CACHE: "asked", **upstream.coordinator, **({"Content-Range": f"bytes {offset}-{size - 1}/{size}"} if wanted else {}),
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ShardCut):  # the connection ends before its time then, which nobody takes for a whole shard
                for file, start, end in reading.spans(offset):
                    sent = self.connection.sendfile(file, start, end - start)
                    counters.add("fedagent_cache_bytes_total", sent, ("served",))
                    if sent < end - start:
                        break

        def _say(self, status: int, body: bytes, outcome: str, headers: dict[str, str] | None = None) -> None:
            counters.add("fedagent_cache_requests_total", 1, (outcome,))
            self.send_response(status)
            kind = "application/json" if body[:1] == b"{" else "text/plain; charset=utf-8"
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            log.debug(format, *values)

    return Handler
