"""What class means as the start of a head add to the loss for label skew: `python -m benchmarks.class_means`.

Pooler and head of MiniLM alone, in plain torch, on what its frozen layers make of the rows, computed once: minutes of one core. 1,500 rows of Banking77 at
six agents, dealt out as in `benchmarks.label_skew`; three cycles of six visits, a visit is one pass. The head of a wave is put together by label, the
pooler is averaged and damped.

fresh        the head begins as it is drawn
class_means  `schedule.head_start: class_means`: a round before the first cycle, in which all agents train the head alone, each from the means of its rows
closed       the same means over the rows of all agents, without any training of that round

Means alone are the closed form before any visit: a classifier that says the label of the nearest mean.
"""

import argparse
import itertools
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.banking77 import LABELS, ROWS, minilm
from benchmarks.label_skew import AGENTS, CYCLES, HELD_OUT_OF_A_LABEL, SPLITS, deal, read_rows
from benchmarks.report import arguments, finish
from fedcybgd.shared.contract.block_names import LONGEST_MEAN

STARTS = ("fresh", "class_means", "closed")
LOSSES = ("logit_adjustment", "smoothed")
RATE, DECAY, DAMPING, BATCH, WARMUP = 5e-3, 0.6, 0.4, 16, 5
TRAINED = 1500


def features(cache: Path | None) -> dict[str, Any]:
    """Of training and held-out rows the first token after the last layer, (rows, hidden), and the labels; and the pooler, matrix and bias."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    if cache is not None and cache.exists():
        found: dict[str, Any] = torch.load(cache)
        return found
    tested = read_rows(ROWS.with_name("banking77_test.jsonl.gz"))
    held_out = [row for label in range(LABELS) for row in [row for row in tested if row["label"] == label][:HELD_OUT_OF_A_LABEL]]
    rows = read_rows(ROWS)
    random.Random(0).shuffle(rows)
    model, tokenizer = AutoModel.from_pretrained(minilm()).eval(), AutoTokenizer.from_pretrained(minilm())

    def made(texts: list[str]) -> Iterator[Any]:
        for start in range(0, len(texts), 64):
            inputs = tokenizer(texts[start : start + 64], padding=True, truncation=True, max_length=64, return_tensors="pt")
            with torch.no_grad():
                yield model(**inputs).last_hidden_state[:, 0]

    found = {"pooler": [p.detach().clone() for p in (model.pooler.dense.weight, model.pooler.dense.bias)]}
    for name, some in (("train", rows[: 2 * TRAINED]), ("held_out", held_out)):
        found |= {
            name: torch.cat(list(made([row["text"] for row in some]))),
            f"{name}_labels": torch.tensor([row["label"] for row in some]),
        }
    if cache is not None:
        torch.save(found, cache)
    return found


class Run:
    """One run; `accuracy()` is that on the held-out rows, in percent."""

    def __init__(self, data: dict[str, Any], split: str, seed: int, start: str) -> None:
        import torch

        self._data, self._seed = data, seed
        drawn = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(data["train"]), generator=drawn)[:TRAINED].tolist()
        rows = [{"place": place, "label": int(data["train_labels"][place])} for place in chosen]
        self.parts = [[row["place"] for row in part] for part in deal(rows, split, seed, LABELS)]
        self.head = torch.randn(LABELS, data["train"].shape[1], generator=drawn) * (0.02 if start == "fresh" else 0.0)
        self._start = start
        self.bias, self.pooler = torch.zeros(LABELS), list(data["pooler"])

    def accuracy(self) -> float:
        logits = self._pooled(self._data["held_out"], *self.pooler) @ self.head.T + self.bias
        return 100 * float((logits.argmax(1) == self._data["held_out_labels"]).float().mean())

    @staticmethod
    def _pooled(hidden: Any, weight: Any, bias: Any) -> Any:
        return (hidden @ weight.T + bias).tanh()

    def with_means(self, head: Any, rows: list[int]) -> Any:
        """The head with those rows that nobody has set, and of whose labels there are some, at the mean of these, as agents set them."""
        import torch
        from torch.nn import functional

        labels = self._data["train_labels"][rows]
        sums = torch.zeros_like(head).index_add_(0, labels, self._pooled(self._data["train"][rows], *self.pooler))
        counts = torch.bincount(labels, minlength=len(head))
        means = sums / counts.clamp(min=1)[:, None]
        usual = means.norm(dim=1).sum() / (counts > 0).sum()
        unset = (head == 0).all(dim=1) & (counts > 0)
        return torch.where(unset[:, None], LONGEST_MEAN / usual.clamp(min=1) * functional.normalize(means, dim=1), head)

    def run(self, wave: int, loss: str) -> None:
        if self._start == "closed":
            self.head = self.with_means(self.head, [row for part in self.parts for row in part])
        if self._start == "class_means":
            self._together([self._visit(agent, 0, loss, alone=True) for agent in range(AGENTS) if self.parts[agent]])
        for cycle in range(CYCLES):
            for first in range(0, AGENTS, wave):
                members = [(block + cycle) % AGENTS for block in range(first, first + wave)]
                self._together([self._visit(agent, cycle, loss) for agent in members if self.parts[agent]])

    def _together(self, visits: list[tuple[Any, list[Any]]]) -> None:
        import torch

        counts = [count for count, _ in visits]
        total, alike = sum(counts), torch.tensor(1 / len(visits))
        shares = [torch.where(total > 0, count / total.clamp(min=1), alike) if len(visits) > 1 else torch.ones(LABELS) for count in counts]
        damped = (DAMPING if len(visits) > 1 else 1.0) / len(visits)
        for share, (_, (head, bias, *pooler)) in zip(shares, visits, strict=True):
            self.head, self.bias = self.head + share[:, None] * head, self.bias + share * bias
            self.pooler = [old + damped * new for old, new in zip(self.pooler, pooler, strict=True)]

    def _visit(self, agent: int, cycle: int, loss: str, alone: bool = False) -> tuple[Any, list[Any]]:
        """How many rows of each label, and what it changes: of the head, its bias, and the pooler."""
        import torch
        from torch.nn import functional

        from fedcybgd.agent.training.loss import label_offsets

        rows, before = self.parts[agent], [self.head, self.bias, *self.pooler]
        hidden, labels = self._data["train"][rows], self._data["train_labels"][rows]
        counts = torch.bincount(labels, minlength=LABELS)
        begun = [self.with_means(self.head, rows) if alone else self.head, self.bias, *self.pooler]
        head, bias, *pooler = trained = [tensor.clone().requires_grad_() for tensor in begun]
        offsets = label_offsets(loss, counts.tolist())  # type: ignore[arg-type]
        moved = trained[:2] if alone else trained
        optimizer = torch.optim.AdamW(moved, lr=RATE, weight_decay=0.0)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1000 * self._seed + 10 * cycle + agent)).split(BATCH)
        for step, batch in enumerate(order):
            optimizer.param_groups[0]["lr"] = RATE * DECAY**cycle * min(1, (step + 1) / WARMUP)
            logits = self._pooled(hidden[batch], *pooler) @ head.T + bias
            optimizer.zero_grad()
            functional.cross_entropy(logits + offsets, labels[batch]).backward()  # type: ignore[no-untyped-call]
            for tensor in (head, bias) if loss == "smoothed" else ():
                tensor.grad[counts == 0] = 0.0  # type: ignore[index]
            torch.nn.utils.clip_grad_norm_(moved, 1.0)
            optimizer.step()
        return counts, [new.detach() - old for new, old in zip(trained, before, strict=True)]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of who has which rows, of the head, and of the order of rows")
    parser.add_argument("--split", choices=SPLITS, action="append", help="only these")
    parser.add_argument("--cache", type=Path, help="keep what the frozen layers make of the rows in this file")
    options = parser.parse_args()
    figures = measured(options)
    finish(figures, {}, options.json)


def measured(options: argparse.Namespace) -> dict[str, float]:
    """By the arm: mean accuracy over the seeds, and its standard deviation."""
    import torch

    torch.set_num_threads(1)
    data, figures = features(options.cache), {}
    for split in options.split or SPLITS:
        anchors = [Run(data, split, seed, "closed") for seed in range(options.seeds)]
        for anchor in anchors:
            anchor.head = anchor.with_means(anchor.head, [row for part in anchor.parts for row in part])
        figures |= _figures(f"{split}/means alone", [anchor.accuracy() for anchor in anchors])
        for wave, loss, start in itertools.product((3, 1), LOSSES, STARTS):
            found = [Run(data, split, seed, start) for seed in range(options.seeds)]
            for run in found:
                run.run(wave, loss)
            figures |= _figures(f"{split}/{'waves' if wave > 1 else 'strict'} {loss}, {start}", [run.accuracy() for run in found])
    return figures


def _figures(name: str, values: list[float]) -> dict[str, float]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    print(f"{name:50} {statistics.mean(values):5.1f} ± {spread:3.1f}", flush=True)
    return {name: statistics.mean(values), f"{name} (sd)": spread}


if __name__ == "__main__":
    main()
