"""Where visits and scores of the benchmarks that train in one process are computed: on the processor, or on what BENCHMARK_DEVICE names.

Precision is float32 on either, so that a figure is of the method, and not of the machine.
"""

import os

from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.engine.device import measure_on

DEVICE = os.environ.get("BENCHMARK_DEVICE", "cpu")
SETTINGS: dict[str, str] = {} if DEVICE == "cpu" else {"precision": "float32"}
"""Of visits, in place of what the run file has"""


def visitor() -> Visitor:
    """One that trains there; measurements of this process are made there, too."""
    measure_on(DEVICE)
    return Visitor(DEVICE)
