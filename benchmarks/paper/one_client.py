"""One client and one cycle of blocks: how far does it get, against training all parameters in one place with the same steps and tokens?

stories260K (0.26 M parameters) on Shakespeare, all rows with one agent, nothing compressed, batches of 8 × 64 tokens. A cycle is six visits
(embeddings and five layers; the final norm is trained along) of 16 steps. *Central* trains every parameter for as many steps on the same rows:
in one go, as anybody would; and with a fresh AdamW (moments and warm-up) after every 16 steps, which is the part of a visit that has nothing to do with blocks.
Blocks and central get the best of four learning rates each, by their own loss in a run with another seed. Loss: nats a token, 300 held-out speeches.
"""

from typing import Any

from benchmarks.paper.federation import Place, plays_spec
from benchmarks.paper.table import Figures, mean, show, summary
from benchmarks.reference import Reference

ARMS = ("block cycle", "central, in one go", "central, AdamW begun afresh")
RATES = (7.5e-4, 1.5e-3, 3e-3, 6e-3)
SEARCHED = 1000
"""the seed of the search"""
VISITS = 6


def spec_of(arm: str, steps: int, rate: float, seed: int) -> dict[str, Any]:
    if arm == "block cycle":
        return plays_spec(seed, steps, train={"learning_rate": rate})
    rounds = 1 if arm == "central, in one go" else VISITS
    whole: dict[str, Any] = {"schedule": {"cycles": rounds, "always": []}, "train": {"learning_rate": rate}}
    return plays_spec(seed, steps * VISITS // rounds, **whole) | {"method": "whole"}


def measure(arm: str, seed: int, place: Place) -> Figures:
    steps = place.size(16, 2)
    searched = ARMS[1] if arm == ARMS[2] else arm
    rate = place.once(("rate", searched), lambda: min(RATES, key=lambda one: _run(searched, steps, one, SEARCHED, place)[-1]))
    losses = _run(arm, steps, rate, seed, place)
    run: Reference = place.kept["last run"]
    trained = [sum(b.num_parameters for b in run.stored if b.name in order.trained) for n in range(run.rounds_done)
               for order in run.spec.round(run.trained, 1, n)]  # fmt: skip
    curve = {f"after {n}": loss for n, loss in enumerate(losses[:-1])}
    return curve | {
        "loss": losses[-1], "rate": rate, "steps": float(sum(m.steps for m in run.metrics)), "tokens": float(sum(m.tokens for m in run.metrics)),
        "trained at once %": 100 * max(trained) / sum(b.num_parameters for b in run.stored),
    }  # fmt: skip


def _run(arm: str, steps: int, rate: float, seed: int, place: Place) -> list[float]:
    """The losses before the first round and after each."""
    folder, federation = place.scratch(), place.plays(seed, pooled=True)
    run = federation.begin(folder, spec_of(arm, steps, rate, seed))
    losses = [federation.loss(run)]
    federation.go_on(run, folder, after_round=lambda _: losses.append(federation.loss(run)))
    place.kept["last run"] = run
    return losses


def report(found: dict[str, list[Figures]]) -> Figures:
    figures = summary(found)
    show(found, {"loss": 4, "rate": 4, "steps": 0, "tokens": 0, "trained at once %": 1})
    for arm, runs in found.items():
        print(f"{arm:30}", " → ".join(f"{mean(runs, name):.3f}" for name in runs[0] if name.startswith("after ") or name == "loss"))
    if {"block cycle", "central, in one go"} <= set(found):
        begun = figures["block cycle/after 0"]
        for arm in ARMS[1:]:
            if arm in found:
                figures[f"share of the gain of {arm}"] = (begun - figures["block cycle/loss"]) / (begun - figures[f"{arm}/loss"])
                print(f"the block cycle's gain, of that of {arm}: {figures[f'share of the gain of {arm}']:.3f}")
    return figures
