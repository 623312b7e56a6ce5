"""The metrics of an agent, and the port on which this machine alone can read them."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fedcybgd.agent.errors import ConfigError
from fedcybgd.shared.contract.metrics import CONTENT_TYPE, Metric

LOOPBACK = "127.0.0.1"
COUNTED: tuple[Metric, ...] = (
    Metric("fedagent_visits_total", "counter", "visits whose delta the coordinator has received"),
    Metric("fedagent_visit_seconds", "histogram", "how long these took, fetching and sending included"),
    Metric("fedagent_failures_total", "counter", "visits that were given back, by reason", ("reason",)),
    Metric("fedagent_steps_total", "counter", "training steps"),
    Metric("fedagent_bytes_total", "counter", "bytes of visits: down (shards, patches, files), up (deltas)", ("direction",)),
)  # fmt: skip
GAUGES: tuple[Metric, ...] = (
    Metric("fedagent_training", "gauge", "1 while it has a visit"),
    Metric("fedagent_tokens_per_second", "gauge", "speed of training, as it was said last"),
    Metric("fedagent_loss", "gauge", "loss of the visit, as it was said last"),
    Metric("fedagent_peak_memory_bytes", "gauge", "peak of the training process in the visit, as it was said last"),
    Metric("fedagent_last_contact_timestamp_seconds", "gauge", "when the coordinator answered last, in Unix time; 0: not yet"),
    Metric("fedagent_last_error_timestamp_seconds", "gauge", "when the last error was, in Unix time; 0: there was none"),
    Metric("fedagent_info", "gauge", "1; the version of the program", ("version",)),
)  # fmt: skip
METRICS = COUNTED + GAUGES


class MetricsPort:
    """Answers `GET /metrics` on the loopback address, in a thread of its own, until it is closed."""

    def __init__(self, port: int, text: Callable[[], str]) -> None:
        """Raises `ConfigError` where the port cannot be had."""
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), _handler(text))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {LOOPBACK}:{port} for metrics: {error}; choose another --metrics") from error
        self._server.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}/metrics"
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            # A page in a browser of this machine could have its own name point here: it is not asked for by that.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if self.path != "/metrics" or host not in (LOOPBACK, "localhost"):
                self.send_error(404)
                return
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: it is asked every few seconds."""

    return Handler
