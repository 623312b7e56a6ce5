"""Which layers a visit trains, in which order, and whose rows they see: what does the schedule decide on a medium-sized model?

MiniLM (22.7 M parameters) on 1,200 rows of SST-2 dealt out to six agents, 872 held out; two cycles over its six layers, pooler and head trained along,
frozen blocks and deltas int8. One thing is changed at a time. Every arm makes as many passes over every row: where a visit trains two or three layers,
it is two or three times as long, and a cycle has as many fewer visits. *Agents drawn* is no choice of a run file: each visit's agent is drawn
from the seed, its bytes are not counted. *Head alone* is the anchor: what is there to be gained by training layers at all.
"""

import random
from typing import Any

from benchmarks.paper.federation import AGENTS, Place, reviews_spec
from benchmarks.paper.table import Figures, show, summary

CYCLES = 2
REFERENCE = "one layer, ascending, rotating"
SCHEDULES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "two layers a visit": {"schedule": {"layers_per_block": 2}, "train": {"epochs": 2}},
    "three layers a visit": {"schedule": {"layers_per_block": 3}, "train": {"epochs": 3}},
    "descending": {"schedule": {"order": "descending"}},
    "random order": {"schedule": {"order": "random"}},
    "agents fixed": {"schedule": {"agents": "fixed"}},
    "agents drawn": {},
    "head alone": {"schedule": {"blocks": ["pooler"], "always": ["head"], "cycles": 6 * CYCLES}},
}
"""What is laid over the run file of the reference; a choice of `schedule` that a run file gets later needs a line here, and no other."""
ARMS = tuple(SCHEDULES)


def measure(arm: str, seed: int, place: Place) -> Figures:
    folder, federation = place.scratch(), place.reviews(seed)
    sections = {name: dict(values) for name, values in SCHEDULES[arm].items()}
    sections["schedule"] = {"cycles": CYCLES} | sections.get("schedule", {})
    run = federation.begin(folder, reviews_spec(seed, **sections))
    drawn = random.Random(f"{seed}:agents")
    for _ in range(run.spec.rounds(run.trained)):
        files = [federation.partitions[drawn.randrange(AGENTS)]] * AGENTS if arm == "agents drawn" else federation.partitions
        federation.go_on(run, folder, 1, files)
    scored = run.evaluate(federation.held_out)
    sizes = {b.name: b.num_parameters for b in run.stored}
    found = {
        "accuracy": 100 * (scored.accuracy or 0.0), "loss": scored.loss, "visits": float(len(run.metrics)),
        "steps": float(sum(m.steps for m in run.metrics)),
        "trained at once %": 100 * max(sum(sizes[b] for b in order.trained) for order in run.spec.round(run.trained, AGENTS, 0)) / sum(sizes.values()),
    }  # fmt: skip
    return found if arm == "agents drawn" else found | {"MB": run.bytes_moved() / 1e6}


def report(found: dict[str, list[Figures]]) -> Figures:
    """Beside each arm its distance from the reference, seed by seed."""
    for runs in found.values() if REFERENCE in found else ():
        for run, plain in zip(runs, found[REFERENCE], strict=True):
            run["points"] = run["accuracy"] - plain["accuracy"]
            run["nats"] = run["loss"] - plain["loss"]
    show(found, {"accuracy": 1, "points": 1, "loss": 3, "nats": 3, "MB": 0, "visits": 0, "steps": 0, "trained at once %": 1})
    return summary(found)
