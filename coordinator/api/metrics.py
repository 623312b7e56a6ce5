"""`/metrics`: what Prometheus reads, with the key of a viewer."""

from importlib.metadata import version

import psutil
from fastapi import APIRouter, Response

from fedcybgd.coordinator.api.deps import CountersDep, ViewerDep, WaitingDep, now
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep
from fedcybgd.coordinator.domain.metrics import METRICS
from fedcybgd.coordinator.services.read import gauges
from fedcybgd.shared.contract.metrics import CONTENT_TYPE, MetricEntry, text

router = APIRouter(route_class=DatabaseRoute)
THIS = psutil.Process()


@router.get("/metrics", include_in_schema=False, dependencies=[ViewerDep])
def metrics(session: ReadDep, waiting: WaitingDep, counters: CountersDep) -> Response:
    """All metrics of this process and its database, in the text format of Prometheus."""
    with THIS.oneshot():
        used = THIS.cpu_times()
        here = [
            MetricEntry("fedcoord_waiting_claims", len(waiting)),
            MetricEntry("fedcoord_memory_bytes", THIS.memory_info().rss),
            MetricEntry("fedcoord_cpu_seconds_total", used.user + used.system),
            MetricEntry("fedcoord_info", 1, {"version": version("fedcybgd")}),
        ]
    return Response(text(METRICS, [*counters.entries(), *gauges.of(session, now()), *here]), media_type=CONTENT_TYPE)
