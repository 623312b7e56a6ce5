"""Does the block cycle learn to answer questions, and what does a LoRA that was never trained score: the paper's second table.

MiniLM (22.7 M parameters, no head for it) on the English rows of XQuAD, which are 1,190 of SQuAD's development set: whole articles are held out
(250 rows), and the others dealt out to six agents, an article to one. The paper has 87,599 rows: with a hundredth of them nobody
answers well. Every trained arm makes three passes over every row, deltas int8, frozen blocks int8 (whole models have none), the head along
at five times the rate. *LoRA* has as many parameters as a layer, beside all matrices of all layers. *LoRA, untrained* is prepared like it and trained
in no visit: what it scores is what the base with a fresh head scores, to the digit. *Expanded*: all layers that a visit does not train are
corrected with rank 8, at twice the rate. Rates are searched for each arm alike, in one pass of agents of another
seed, 60 rows an agent, scored on articles that are not the held-out ones: three values, and one further where the best is at an edge.
"""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import device
from benchmarks.banking77 import minilm, tiny
from benchmarks.paper.federation import AGENTS, INT8, Federation, Place, laid_over
from benchmarks.paper.table import Figures, mean, show, summary
from benchmarks.reference import Reference

FILE = "xquad_en_squad_dev_subset.jsonl.gz"
HELD_OUT, PASSES, LENGTH, SEARCH_SEED = 250, 3, 192, 1000
UNTRAINED, LORA, NEVER = "untrained", "LoRA", "LoRA, untrained"
CORRECTED = "block cycle, waves of 3, expanded"
ARMS = (UNTRAINED, "block cycle, waves of 3", CORRECTED, "whole", LORA, NEVER)
RANK = 42
"""6 layers × (4 × (384 + 384) + 2 × (384 + 1536)) a rank: 1.74 M parameters, and a layer has 1.77 M"""
CORRECTION_RANK = 8
METHODS: dict[str, dict[str, Any]] = {
    UNTRAINED: {"schedule": {"blocks": ["layers"]}},
    "block cycle, waves of 3": {"schedule": {"blocks": ["layers"], "wave": 3, "damping": 0.7}},
    CORRECTED: {"schedule": {"blocks": ["layers"], "wave": 3, "damping": 0.7}},
    "whole": {"method": "whole", "compression": {"policy": "none"}},
    LORA: {"method": "adapters"}, NEVER: {"method": "adapters"},
}  # fmt: skip
RATES: dict[str, tuple[float, ...]] = {
    "block cycle, waves of 3": (3e-4, 6e-4, 1.2e-3), CORRECTED: (3e-4, 6e-4, 1.2e-3), "whole": (1e-4, 2e-4, 4e-4), LORA: (5e-4, 1e-3, 2e-3),
}  # fmt: skip


def spec_of(arm: str, seed: int, rate: float, passes: int, rank: int = RANK) -> dict[str, Any]:
    """A cycle is a pass over the rows: of six layers each is visited by another agent; of all others every agent makes one."""
    base: dict[str, Any] = {
        "name": "questions", "model": "minilm", "seed": seed, "task": {"kind": "extractive-qa", "max_length": LENGTH},
        "schedule": {"cycles": passes, "always": ["head"]},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": rate, "always_learning_rate": 5 * rate, "weight_decay": 0.01}, **INT8,
    }  # fmt: skip
    adapters = {"adapters": {"matrices": ["linear"], "rank": rank, "alpha": 2.0 * rank}} if arm in (LORA, NEVER) else {}
    if arm == CORRECTED:
        base["corrections"] = {"rank": CORRECTION_RANK, "learning_rate": 2 * rate}
    return laid_over(base, METHODS[arm] | adapters)


def measure(arm: str, seed: int, place: Place) -> Figures:
    rate = place.once(("rate", arm), lambda: _best_rate(arm, place)) if arm in RATES else 1e-4
    federation = place.once(("questions", seed), lambda: _questions(place, seed))
    run = _trained(arm, seed, rate, place.size(PASSES, 1), federation, place)
    found = run.evaluate(federation.held_out)
    trained = 0 if arm not in RATES else _trained_at_once(run)
    return {
        "F1": 100 * (found.f1 or 0.0), "exact match": 100 * (found.exact_match or 0.0), "loss": found.loss, "rate": rate,
        "trained at once %": 100 * trained / sum(b.num_parameters for b in run.stored), "MB": run.bytes_moved() / 1e6,
        "steps": float(sum(m.steps for m in run.metrics)),
    }  # fmt: skip


def report(found: dict[str, list[Figures]]) -> Figures:
    show(found, {"F1": 2, "exact match": 2, "loss": 3, "trained at once %": 1, "MB": 0, "steps": 0, "rate": 5})
    figures = summary(found)
    if UNTRAINED in found and NEVER in found:
        figures["untrained LoRA, off the base"] = mean(found[NEVER], "F1") - mean(found[UNTRAINED], "F1")
        print(f"LoRA that was never trained, minus the base: {figures['untrained LoRA, off the base']:+.4f} of F1")
    return figures


def _trained(arm: str, seed: int, rate: float, passes: int, federation: Federation, place: Place) -> Reference:
    folder = place.scratch()
    run = federation.begin(folder, spec_of(arm, seed, rate, passes, place.size(RANK, 4)))
    if arm in RATES:
        federation.go_on(run, folder)
    return run


def _trained_at_once(run: Reference) -> int:
    sizes = {b.name: b.num_parameters for b in run.stored}
    orders = run.spec.round(run.trained, AGENTS, 0)
    return max(sum(sizes[block] for block in order.trained) for order in orders)


def _best_rate(arm: str, place: Place) -> float:
    """With the least loss of one pass; `tried` is printed."""
    federation = place.once(("questions", "search"), lambda: _questions(place, SEARCH_SEED, search=True))

    def loss(rate: float) -> float:
        return _trained(arm, SEARCH_SEED, rate, 1, federation, place).evaluate(federation.held_out).loss

    losses = {rate: loss(rate) for rate in RATES[arm][: place.size(3, 1)]}
    best = min(losses, key=losses.__getitem__)
    if len(losses) > 1 and best in (min(losses), max(losses)):
        further = 2 * best if best == max(losses) else best / 2
        losses[further] = loss(further)
        best = min(losses, key=losses.__getitem__)
    print(f"{arm}: " + ", ".join(f"{rate:g} {losses[rate]:.3f}" for rate in sorted(losses)), flush=True)
    return best


def _questions(place: Place, seed: int, search: bool = False) -> Federation:
    if place.data is None:
        raise SystemExit(f"this question needs --data DIR, a directory with {FILE}")
    folder = place.folder / f"questions-{seed}"
    folder.mkdir()
    agents, held_out = split(place.data / FILE, seed, place.size(HELD_OUT, 8), search)
    most = place.size(60 if search else len(held_out) + sum(map(len, agents)), 8)
    agents, held_out = [rows[:most] for rows in agents], held_out[: 2 * most]
    paths = [_written(folder / f"agent-{number}.jsonl", rows) for number, rows in enumerate(agents)]
    model = tiny(folder / "model") if place.tiny else minilm()
    return Federation(model, paths, _written(folder / "held-out.jsonl", held_out), [device.visitor()] * AGENTS)


def split(path: Path, seed: int, held_out: int, search: bool = False) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The rows of each agent and the held-out ones, by article: which are held out is the same for every seed, who has which others is drawn.

    `search`: those are left out, and others held out in their place.
    """
    articles = defaultdict[str, list[dict[str, Any]]](list)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            articles[row["title"]].append({name: row[name] for name in ("question", "context", "answers")})
    titles = sorted(articles)
    random.Random(0).shuffle(titles)
    tested = _some(articles, titles, held_out)
    if search:
        tested = _some(articles, titles, held_out)
    random.Random(seed).shuffle(titles)
    agents: list[list[dict[str, Any]]] = [[] for _ in range(AGENTS)]
    for title in titles:
        min(agents, key=len).extend(articles[title])
    return agents, tested


def _some(articles: Mapping[str, list[dict[str, Any]]], titles: list[str], rows: int) -> list[dict[str, Any]]:
    """The rows of the last articles, which are taken out of `titles`: so many or a few more."""
    found: list[dict[str, Any]] = []
    while len(found) < rows:
        found += articles[titles.pop()]
    return found


def _written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
