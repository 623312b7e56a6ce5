"""A block cycle in one bare process, with rounds as free as an experiment wants them: what schedules are tried in before they are built.

Rows, batches, their order, the loss and the optimizer are the agents' own; frozen blocks and deltas are exact and float32. A *unit* is
what a visit trains: a block, or a part of one, or several. What is to become of a delta is said by the round, so also things that the
product does not do can be tried: see `benchmarks.schedules`.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fedcybgd.agent.messages import DataSource
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.optimizer import OptimizerGroup, Stepper
from fedcybgd.agent.training.order import visit_order
from fedcybgd.coordinator.domain.schedule import visit_seed
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.training import TrainSettings
from fedcybgd.shared.models.batches import Batch, chunks, forward_logits, loss_sum
from fedcybgd.shared.models.blocks import names_by_canonical, partition

TASK = TaskSpec(task="causal-lm", max_length=32)
HELD_OUT, CALIBRATION = 600, 64
BATCH = 8
Delta = dict[str, Tensor]
"""By the name of a parameter in the model, float32."""


@dataclass(frozen=True)
class Visit:
    """What one agent trains, and for how many steps."""

    unit: str
    agent: int
    steps: int


@dataclass(frozen=True)
class Wave:
    """One round. `lateness` has, for each visit, how many rounds too late its delta comes; left out, none is late."""

    visits: Sequence[Visit]
    damping: float = 1.0
    lateness: Sequence[int] = ()


@dataclass(frozen=True)
class Outer:
    """Momentum over the deltas of a unit: velocity ← momentum · velocity + delta."""

    momentum: float
    nesterov: bool


class Trial:
    """A model, the rows of its agents, and the held-out ones."""

    def __init__(self, model: Path, partitions: Sequence[Path], held_out: Path, seed: int) -> None:
        torch.set_num_threads(1)
        self.seed = seed
        self.model: nn.Module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
        self.parts = [Partition(DataSource(path=str(path)), model, TASK) for path in partitions]
        self._held_out = Partition(DataSource(path=str(held_out)), model, TASK)
        names = names_by_canonical(self.model)
        self.blocks = {block.name: [names[t.name] for t in block.tensors if t.is_parameter] for block in partition(self.model)}
        self.along = self.blocks.pop("norm")
        self.parameters = dict(self.model.named_parameters())
        self._first = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.reset(0.0)

    def reset(self, rate: float) -> None:
        """Begin again with the base model, and with this learning rate."""
        self.rate, self.steps, self.visits, self.rounds = rate, 0, 0, 0
        self._velocities: dict[str, Delta] = {}
        self._late: list[tuple[int, int, Delta, float]] = []
        self._restore(self._first)

    def names(self, unit: str) -> list[str]:
        """The parameters of a unit: `layers.0` (a block), `layers.0+layers.1`, `layers.0:attention`, `layers.0:mlp`."""
        found: list[str] = []
        for part in unit.split("+"):
            block, _, half = part.partition(":")
            attention = ("self_attn", "input_layernorm")
            found += [n for n in self.blocks[block] if not half or (half == "attention") == any(word in n for word in attention)]
        return found

    def run(self, waves: Iterable[Wave], outer: Outer | None = None, factors: Mapping[int, float] | None = None) -> float:
        """The held-out loss afterwards. `factors`: age in rounds → what a delta that comes so late still counts."""
        for number, wave in enumerate(waves):
            self.rounds, self.visits = self.rounds + 1, self.visits + len(wave.visits)
            base = {name: p.detach().clone() for name, p in self.parameters.items()}
            lateness = wave.lateness or [0] * len(wave.visits)
            made = [self._visit(visit, number) for visit in wave.visits]
            in_time = [delta for delta, late in zip(made, lateness, strict=True) if not late]
            with torch.no_grad():
                for visit, delta, late in zip(wave.visits, made, lateness, strict=True):
                    own = {name: value for name, value in delta.items() if name not in self.along}
                    if late:
                        self._late.append((number + late, late, own, wave.damping))
                    else:
                        self._add(base, self._stepped(visit.unit, own, wave.damping, outer))
                for name in self.along if in_time else ():
                    base[name] += wave.damping * torch.stack([delta[name] for delta in in_time]).mean(0)
                for due, age, delta, damping in self._late:
                    if due == number:
                        self._add(base, {name: value * (damping * (factors or {}).get(age, 0.0)) for name, value in delta.items()})
                self._restore(base)
        return self.loss()

    def _stepped(self, unit: str, delta: Delta, damping: float, outer: Outer | None) -> Delta:
        mean = {name: value * damping for name, value in delta.items()}
        if outer is None:
            return mean
        before = self._velocities.get(unit, {})
        new = {name: value + outer.momentum * before[name] if before else value for name, value in mean.items()}
        self._velocities[unit] = new
        return {name: mean[name] + outer.momentum * value for name, value in new.items()} if outer.nesterov else new

    def _add(self, base: Delta, change: Delta) -> None:
        for name, value in change.items():
            base[name] += value

    def _restore(self, values: Delta) -> None:
        for name, value in values.items():
            self.parameters[name].detach().copy_(value)

    def _visit(self, visit: Visit, number: int) -> Delta:
        """What a visit changes; the model is left as it was."""
        trained = {name: self.parameters[name] for name in [*self.names(visit.unit), *self.along]}
        before = {name: p.detach().clone() for name, p in trained.items()}
        settings = TrainSettings(
            **dict(TASK), steps=visit.steps, batch_size=BATCH, seed=visit_seed(self.seed, number, visit.unit), precision="float32",
            groups=[],
        )  # fmt: skip
        for name, p in self.parameters.items():
            p.requires_grad_(name in trained)
        part = self.parts[visit.agent]
        stepper = Stepper([OptimizerGroup(list(trained.values()), self.rate)], settings, "cpu")
        for step, rows in enumerate(visit_order(part, settings)):
            batch = part.batch(rows)
            total, count = loss_sum(forward_logits(self.model, batch), batch, "causal-lm")
            stepper.step(total / max(count, 1), step, visit.steps)
        stepper.close()
        self.steps += visit.steps
        with torch.no_grad():
            delta = {name: p.detach() - before[name] for name, p in trained.items()}
            self._restore(before)
        return delta

    def loss(self) -> float:
        """Nats a token on the held-out windows."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in self._batches(range(min(HELD_OUT, len(self._held_out.features)))):
                loss, predictions = loss_sum(forward_logits(self.model, batch), batch, "causal-lm")
                total, count = total + float(loss), count + predictions
        return total / count

    def gradient_norms(self, units: Sequence[str]) -> dict[str, float]:
        """By unit, the norm of the gradient of the mean loss of the calibration rows."""
        for p in self.parameters.values():
            p.requires_grad_(True).grad = None
        count = 0
        for batch in self._batches(range(CALIBRATION)):
            loss, predictions = loss_sum(forward_logits(self.model, batch), batch, "causal-lm")
            loss.backward()  # type: ignore[no-untyped-call]
            count += predictions
        squares = {name: float(p.grad.double().square().sum()) for name, p in self.parameters.items() if p.grad is not None}
        for p in self.parameters.values():
            p.grad = None
        return {unit: sum(squares[name] for name in self.names(unit)) ** 0.5 / count for unit in units}

    def _batches(self, rows: Iterable[int]) -> Iterator[Batch]:
        for chosen in chunks(rows, 16):
            yield self._held_out.batch(chosen)


def write_rows(folder: Path, seed: int) -> tuple[Path, list[Path], Path]:
    """The model, one file for each agent, and the held-out one."""
    from examples.demo.tasks import shakespeare

    found, paths = shakespeare(folder)
    held_out = folder / "held-out.jsonl"
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    random.Random(0).shuffle(rows)  # the same for all seeds
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    random.Random(seed).shuffle(paths)
    return found.model, paths, held_out
