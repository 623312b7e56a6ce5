"""Part of `benchmarks.simulation`: what it says, as two pictures."""

from pathlib import Path
from typing import Any

import numpy

from fedcybgd.coordinator.domain.long_poll import wait_s

PROCESSES, SILENT_AFTER_S = (1, 3, 8), 90
AGENTS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def draw(rows: list[tuple[Any, Any, float]], inputs: dict[str, Any], folder: Path) -> None:
    """Hours of each scenario beside those of the plan; what is in use; and what agents cost that only wait."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "simulation", "svg.fonttype": "none"}
    from matplotlib import pyplot

    names, at = [short(one) for one, _, _ in rows], numpy.arange(len(rows))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.42 * len(rows) + 1.2), sharey=True, layout="constrained")
    left.barh(at - 0.2, [0 if found.saturated else found.seconds / 3600 for _, found, _ in rows], 0.4, label="simulated")
    left.barh(at + 0.2, [plan for _, _, plan in rows], 0.4, label="fedcoord plan: training and transfers")
    left.set(xscale="log", xlabel="hours of two cycles")
    left.set_yticks(at, names)
    left.invert_yaxis()
    for place, (label, shares) in enumerate({
        "web processes": [found.web_share for _, found, _ in rows], "quick lane": [found.lane_share for _, found, _ in rows],
        "line": [found.line_share for _, found, _ in rows],
    }.items()):  # fmt: skip
        right.barh(at + 0.27 * (place - 1), [min(1.0, share) for share in shares], 0.27, label=label)
    right.axvline(1, color="black", linewidth=0.8)
    right.set(xlabel="share of the time in use (1: full)", xlim=(0, 1.05))
    for axis in (left, right):
        axis.legend(loc="lower right", fontsize=8)
    figure.savefig(folder / "simulation-hours.svg", metadata={"Date": None})
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    costs = inputs["costs"]
    for color, processes in enumerate(PROCESSES):
        each = [count / processes for count in AGENTS]
        shares = [costs["poll_s"] * count / wait_s(int(count), SILENT_AFTER_S) for count in each]
        axis.plot(AGENTS, shares, color=f"C{color}", label=f"{processes} web")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="agents that wait", ylabel="of each web process's core")
    axis.legend(fontsize=8)
    figure.savefig(folder / "simulation-waiting.svg", metadata={"Date": None})


def short(one: Any) -> str:
    more = [
        f"{one.processes} web" if one.processes > 1 else "",
        f"{one.lanes} lanes, storage" if one.lanes > 1 else "",
        "losses" if one.fails else "",
    ]
    return ", ".join([f"{one.model.name}: {one.agents:,} agents, waves of {one.wave}", *filter(None, more)])
