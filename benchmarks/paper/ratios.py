"""Do the ratios that the authors' own logs show hold for us too?

Theirs: Llama-2-7B on Alpaca-GPT4, 64 clients, held-out loss from 1.105 (`causal_llms/outputs/llama2-7b/` of their repository at 721732a; deleted later).
Their cycle has 64 visits, so that every layer is visited twice, by two clients; `agg` has three clients train a block and averages them, 32 times
a cycle; `full` hands the whole model from client to client; central tuning of theirs made three passes, as many as their first cycle.
Ours: stories260K on Shakespeare, six agents, nothing compressed, visits of 6 steps of 8 × 64 tokens. So two of our cycles over embeddings and five
layers (12 visits) are one of theirs, and three of theirs are run: ascending, and in random order. *Averaged* has three agents train a block at once
from the same base, 6 updates and 18 visits for each of their cycles. *Handed on* trains all parameters in each visit, at one agent drawn for it. *Central* is one
client with all rows and as many steps as 12 visits, in one go.
"""

from typing import Any

from benchmarks.paper.federation import Place, plays_spec
from benchmarks.paper.table import Figures, mean, show, summary

ARMS = ("ascending", "random order", "averaged in threes", "handed on, whole", "central")
BEGUN = 1.105
THEIRS: dict[str, tuple[float, ...]] = {
    "ascending": (0.9223, 0.9124, 0.9066), "random order": (0.9252, 0.9142, 0.9080), "averaged in threes": (0.9328, 0.9249, 0.9219),
    "handed on, whole": (0.9478, 0.9349, 0.9298), "central": (0.9273,),
}  # fmt: skip
"""held-out loss at the ends of their cycles; central: after as many passes as the first"""
CYCLES = 3
BLOCKS = 6
RATE = 3e-3


def spec_of(arm: str, steps: int, seed: int) -> dict[str, Any]:
    train = {"train": {"learning_rate": RATE}}
    if arm in ("ascending", "random order"):
        order = arm.partition(" ")[0]
        return plays_spec(seed, steps, schedule={"cycles": 2 * CYCLES, "order": order}, **train)
    if arm == "central":
        return plays_spec(seed, steps * 2 * BLOCKS, schedule={"always": []}, **train) | {"method": "whole"}
    if arm == "handed on, whole":
        whole: dict[str, Any] = {"whole": {"fraction": 1 / 6}, "schedule": {"cycles": CYCLES * 2 * BLOCKS, "always": []}}
        return plays_spec(seed, steps, **whole, **train) | {"method": "whole"}
    whole = {"whole": {"fraction": 0.5, "weights": "equal"}, "schedule": {"cycles": CYCLES * BLOCKS}}
    return plays_spec(seed, steps, **whole, **train) | {"method": "whole"}


def measure(arm: str, seed: int, place: Place) -> Figures:
    folder, federation = place.scratch(), place.plays(seed, pooled=arm == "central")
    run = federation.begin(folder, spec_of(arm, place.size(6, 1), seed))
    blocks, losses = list(run.trained), [federation.loss(run)]
    rounds = run.spec.rounds(run.trained)
    cycles = 1 if arm == "central" else CYCLES
    for number in range(rounds):
        if arm == "averaged in threes":
            # A round of whole models, of which this block and the norm are all that is trained: three agents, their mean.
            run.trained = [blocks[number % BLOCKS]]
        federation.go_on(run, folder, 1)
        if (number + 1) % (rounds // cycles) == 0:
            losses.append(federation.loss(run))
    curve = {f"gain {cycle}": losses[0] - loss for cycle, loss in enumerate(losses[1:], 1)}
    return {"begun": losses[0], **curve, "visits": float(len(run.metrics)), "steps": float(sum(m.steps for m in run.metrics))}


def report(found: dict[str, list[Figures]]) -> Figures:
    show(found, {"begun": 3, **{f"gain {cycle}": 3 for cycle in range(1, CYCLES + 1)}, "visits": 0, "steps": 0}, "ours")
    figures = summary(found)
    print(f"{'ratio of gains in nats':60} {'theirs':>8} {'ours':>8}  seed by seed")
    for name, of in RATIOS.items():
        if not all(arm in found for arm, _ in of):
            continue
        (above, _), (below, _) = of
        theirs = _theirs(*of[0]) / _theirs(*of[1])
        seeds = [one[f"gain {of[0][1]}"] / other[f"gain {of[1][1]}"] for one, other in zip(found[above], found[below], strict=True)]
        figures[f"ratio/{name}"] = mean([{"ratio": seed} for seed in seeds], "ratio")
        figures[f"ratio/{name}, theirs"] = theirs
        print(f"{name:60} {theirs:8.3f} {figures[f'ratio/{name}']:8.3f}  {', '.join(f'{seed:.3f}' for seed in seeds)}")
    return figures


RATIOS: dict[str, tuple[tuple[str, int], tuple[str, int]]] = {
    "first cycle, of the gain of three": (("ascending", 1), ("ascending", 3)),
    "first two cycles, of the gain of three": (("ascending", 2), ("ascending", 3)),
    "block cycle, of central at equal passes (cycle 1)": (("ascending", 1), ("central", 1)),
    "block cycle, of the whole model handed on (cycle 1)": (("ascending", 1), ("handed on, whole", 1)),
    "block cycle, of the whole model handed on (cycle 3)": (("ascending", 3), ("handed on, whole", 3)),
    "random order, of ascending (cycle 1)": (("random order", 1), ("ascending", 1)),
    "random order, of ascending (cycle 3)": (("random order", 3), ("ascending", 3)),
    "averaged (1.5 times the visits), of one after another (cycle 1)": (("averaged in threes", 1), ("ascending", 1)),
    "averaged (1.5 times the visits), of one after another (cycle 3)": (("averaged in threes", 3), ("ascending", 3)),
}
"""(arm, after which of their cycles): the gain of the first, of the gain of the second"""


def _theirs(arm: str, cycle: int) -> float:
    return BEGUN - THEIRS[arm][cycle - 1]
