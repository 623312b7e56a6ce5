"""The metrics of an agent, and the port on which this machine alone can read them."""

from collections.abc import Callable

from fedcybgd.agent.loopback import LoopbackPort
from fedcybgd.shared.contract.metrics import CONTENT_TYPE, Metric

COUNTED: tuple[Metric, ...] = (
    Metric("fedagent_visits_total", "counter", "visits whose delta the coordinator has received"),
    Metric("fedagent_visit_seconds", "histogram", "how long these took, fetching and sending included"),
    Metric("fedagent_failures_total", "counter", "visits that were given back, by reason", ("reason",)),
    Metric("fedagent_steps_total", "counter", "training steps"),
    Metric("fedagent_bytes_total", "counter", "bytes of visits: down (shards, patches, files), up (deltas)", ("direction",)),
    Metric("fedagent_site_cache_bytes_total", "counter", "of those down, what the site cache has sent; the others are of the coordinator or its storage"),
)  # fmt: skip
GAUGES: tuple[Metric, ...] = (
    Metric("fedagent_site_cache_asked", "gauge", "1 while the site cache is asked, 0 while it is not because it did not serve; only where there is one"),
    Metric("fedagent_training", "gauge", "1 while it has a visit"),
    Metric("fedagent_tokens_per_second", "gauge", "speed of training, as it was said last"),
    Metric("fedagent_loss", "gauge", "loss of the visit, as it was said last"),
    Metric("fedagent_peak_memory_bytes", "gauge", "peak of the training process in the visit, as it was said last"),
    Metric("fedagent_last_contact_timestamp_seconds", "gauge", "when the coordinator answered last, in Unix time; 0: not yet"),
    Metric("fedagent_last_error_timestamp_seconds", "gauge", "when the last error was, in Unix time; 0: there was none"),
    Metric("fedagent_info", "gauge", "1; the version of the program", ("version",)),
)  # fmt: skip
METRICS = COUNTED + GAUGES


class MetricsPort(LoopbackPort):
    """Answers `GET /metrics`."""

    def __init__(self, port: int, text: Callable[[], str]) -> None:
        """Raises `ConfigError` where the port cannot be had."""
        super().__init__(port, "--metrics", {"/metrics": (CONTENT_TYPE, text)})
