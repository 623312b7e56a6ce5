"""Compression on and off on a small model: what do the codecs of frozen blocks and of deltas cost, one changed at a time?

stories260K on Shakespeare, six agents with whole plays, the strict cycle over six blocks twice, 8 steps of 8 × 64 tokens a visit: 96 in all.
*policy* is how frozen blocks reach an agent, *delta* how its work comes back. Bytes are down and up, of all agents, as they are fetched and sent.
"""

from typing import Any

from benchmarks.paper.federation import Place, plays_spec
from benchmarks.paper.table import Figures, show, summary

RATE = 3e-3
NOTHING = "none / float32"
ARMS = (
    NOTHING, "none / int8", "none / int4", "int8 / float32", "int8 / int8", "int4 / float32", "int4 / int4", "hybrid / float32",
)  # fmt: skip
"""policy / delta"""


def spec_of(arm: str, steps: int, seed: int) -> dict[str, Any]:
    policy, _, codec = arm.partition(" / ")
    return plays_spec(
        seed, steps, schedule={"cycles": 2}, train={"learning_rate": RATE}, compression={"policy": policy}, delta={"codec": codec}
    )


def measure(arm: str, seed: int, place: Place) -> Figures:
    folder, federation = place.scratch(), place.plays(seed)
    run = federation.begin(folder, spec_of(arm, place.size(8, 2), seed))
    begun = place.once(("begun", seed), lambda: federation.loss(run))
    federation.go_on(run, folder)
    return {
        "begun": begun, "loss": federation.loss(run), "left out %": 100 * mean_error(run.metrics),
        "MB down": sum(h.down for h in run.holdings.values()) / 1e6, "MB up": sum(h.up for h in run.holdings.values()) / 1e6,
    }  # fmt: skip


def mean_error(metrics: list[Any]) -> float:
    """What the delta's codec left out, of its norm, on the mean of the visits."""
    return sum(m.delta_error or 0.0 for m in metrics) / len(metrics)


def report(found: dict[str, list[Figures]]) -> Figures:
    """Beside each arm, what it costs against nothing compressed, seed by seed."""
    for runs in found.values() if NOTHING in found else ():
        for run, plain in zip(runs, found[NOTHING], strict=True):
            run["cost"] = run["loss"] - plain["loss"]
            run["gain lost %"] = 100 * run["cost"] / (plain["begun"] - plain["loss"])
    show(found, {"loss": 4, "cost": 4, "gain lost %": 1, "left out %": 2, "MB down": 2, "MB up": 2}, "policy / delta")
    return summary(found)
