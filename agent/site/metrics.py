"""The metrics of a site cache."""

from fedcybgd.shared.contract.metrics import Metric

COUNTED: tuple[Metric, ...] = (
    Metric(
        "fedagent_cache_requests_total", "counter",
        "requests, by what became of them: here, shared (it was on its way already), fetched, refused, failed", ("outcome",),
    ),
    Metric("fedagent_cache_bytes_total", "counter", "bytes of shards: fetched (from the coordinator or its storage), served (to agents)", ("direction",)),
)  # fmt: skip
GAUGES: tuple[Metric, ...] = (
    Metric("fedagent_cache_disk_bytes", "gauge", "bytes of shards on the disk, whole or in part"),
    Metric("fedagent_cache_disk_limit_bytes", "gauge", "the most that there may be"),
)
METRICS = COUNTED + GAUGES
