"""What a run file asks of every visit, read from its text alone: who trains what in which round, how, from which seed.

The judge of a coordinator, so nothing is taken from one: defaults and rules are those of docs/run-file.md, written down again.
A field that is not known here is refused, for a judge that overlooks a field lets a coordinator overlook it too.
"""

import hashlib
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

TRAIN: dict[str, Any] = {
    "steps": None, "epochs": None, "batch_size": 16, "warmup_steps": 5, "weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "auto",
    "optimizer": "adamw",
}  # fmt: skip
"""What an agent is told as it is written."""
RATES: dict[str, Any] = {
    "label_skew": None, "learning_rate": 3e-4, "learning_rate_decay": 1.0, "always_learning_rate": None, "always_learning_rate_decay": 1.0,
}  # fmt: skip
LABEL_SKEW = {"text-classification": "smoothed", "image-classification": "smoothed"}
"""What the loss does where `train.label_skew` is left out, by kind of task."""
SCHEDULE: dict[str, Any] = {
    "cycles": 1, "order": "ascending", "agents": "rotating", "blocks": ["all"], "always": [], "layers_per_block": 1, "wave": 1, "damping": 1.0,
    "head_average": None, "head_start": "fresh", "first_cycle": None,
}  # fmt: skip
FIRST_CYCLE: dict[str, Any] = {"wave": None, "damping": None, "steps": None, "epochs": None}
OF_WAITING = {"reassign_after_s", "wave_deadline_s", "max_attempts"}
"""What decides only when others wait or fail, which nobody does here."""
TASK: dict[str, Any] = {"kind": None, "labels": None, "max_length": 128}
AVERAGING: dict[str, Any] = {"fraction": 1.0, "weights": "rows", "outer": {}}
ADAPTERS: dict[str, Any] = AVERAGING | {"matrices": ["linear"], "rank": 8, "alpha": 16.0, "combine": "mean"}
CORRECTIONS: dict[str, Any] = {"rank": 4, "alpha": 16.0, "layers": "all", "matrices": ["linear"], "learning_rate": 2e-3}
OUTER: dict[str, Any] = {"learning_rate": 1.0, "momentum": 0.0, "nesterov": False}
DELTA: dict[str, Any] = {"codec": "int8", "error_feedback": False}
COMPRESSION: dict[str, Any] = {
    "policy": "int8", "trained": "exact", "drop_ratio": 0.5, "prune_ratio": 0.25, "floor": None, "below_floor": "upgrade", "calibration_rows": 64,
    "delta_patches": False,
}  # fmt: skip
ELSEWHERE = {"name", "model", "agents", "evaluate", "admission", "lease_s"}
"""Sections that change no weights of a run in which nothing is rejected."""


class Unreadable(Exception):
    """The run file says something that this reading does not know."""


@dataclass(frozen=True)
class Task:
    kind: Any
    num_labels: int | None
    label_names: list[str] | None
    max_length: int


@dataclass(frozen=True)
class Order:
    """One visit: its agent by number, what it is called in its round, and all that its agent is told of training."""

    round: int
    agent: int
    name: str
    told: Mapping[str, Any]

    @property
    def block(self) -> str:
        return self.trained[0]

    @property
    def trained(self) -> list[str]:
        return [name for group in self.told["groups"] for name in group["blocks"]]


class Reading:
    """The values of a run file, as YAML or JSON has them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        known = {
            "task",
            "method",
            "whole",
            "adapters",
            "corrections",
            "schedule",
            "train",
            "compression",
            "delta",
            "exposure",
            "seed",
        } | ELSEWHERE
        if strange := set(values) - known:
            raise Unreadable(f"the sections {sorted(strange)}")
        task = _section(values, "task", TASK)
        labels = task["labels"]
        names = labels if isinstance(labels, list) else None
        self.task = Task(task["kind"], len(names) if names else labels, names, task["max_length"])
        self.method = values.get("method", "block-cycle")
        if self.method not in ("block-cycle", "whole", "adapters"):
            raise Unreadable(f"the method {self.method}")
        self.averages = self.method != "block-cycle"
        self.adapters = _section(values, "adapters", ADAPTERS) if self.method == "adapters" else None
        self.corrections = _section(values, "corrections", CORRECTIONS) if values.get("corrections") is not None else None
        self.averaging = self.adapters or _section(values, "whole", AVERAGING)
        self._outer = _section(self.averaging, "outer", OUTER)
        self.train = _section(values, "train", TRAIN | RATES)
        self.schedule = _section(values, "schedule", SCHEDULE | ({"blocks": ["adapters"]} if self.adapters else {}), OF_WAITING)
        usual = COMPRESSION | ({"policy": "none"} if self.method == "whole" else {})
        self.compression = _section(values, "compression", usual)
        self.delta = _section(values, "delta", DELTA)
        self._first = _section(self.schedule, "first_cycle", FIRST_CYCLE)
        self.heads_first = int(self.schedule["head_start"] == "class_means")
        self.seed: int = values.get("seed", 0)
        if (values.get("exposure") or {}).get("max_exact_blocks") is not None:
            raise Unreadable("a budget of exact blocks")
        if self.schedule["agents"] == "first_come":
            raise Unreadable("agents that come by themselves")

    def rounds(self, blocks: Sequence[str]) -> int:
        """How many rounds the run has, whose trained blocks are `blocks`, in the order of the model."""
        return self.heads_first + sum(self._rounds_of_a_cycle(blocks, cycle) for cycle in range(self.schedule["cycles"]))

    def round(self, blocks: Sequence[str], agents: int, number: int, importance: Mapping[str, float] | None = None) -> list[Order]:
        """The visits of round `number`, counted from 0. `importance`: of blocks, where it was measured."""
        if self.heads_first and number == 0:
            return [Order(0, agent, f"head {agent}", self._told_of_a_head(agent)) for agent in range(agents)]
        found = self._round(blocks, agents, number - self.heads_first, importance)
        return [replace(order, round=number) for order in found]

    def _round(self, blocks: Sequence[str], agents: int, number: int, importance: Mapping[str, float] | None) -> list[Order]:
        """The same without what comes before the first cycle."""
        if self.averages:
            draw = random.Random(f"{self.seed}:{number}:agents")
            count = max(1, int(self.averaging["fraction"] * agents + 0.5))
            who = sorted(draw.sample(range(agents), count))
            if self.adapters and self.adapters["combine"] == "handed":
                who = [number % agents]
            return [Order(number, agent, f"seat {i}", self._told(number, number, list(blocks), f"seat {i}")) for i, agent in enumerate(who)]
        cycle = self.cycle(blocks, number + self.heads_first)
        place = number - sum(self._rounds_of_a_cycle(blocks, before) for before in range(cycle))
        order = list(blocks)
        if self.schedule["order"] == "descending":
            order.reverse()
        elif self.schedule["order"] == "random":
            random.Random(f"{self.seed}:{cycle}").shuffle(order)
        elif self.schedule["order"] == "importance" and importance:
            order.sort(key=importance.__getitem__, reverse=True)
        wave = self._in_cycle(cycle, "wave")
        members = order[place * wave : (place + 1) * wave]
        turn = cycle if self.schedule["agents"] == "rotating" else 0
        numbers = [(list(blocks).index(block) + turn) % agents for block in members]
        if len(set(numbers)) < len(numbers):
            raise Unreadable(f"two visits of round {number} for one agent")
        return [
            Order(number, agent, block, self._told(number, cycle, [block], block)) for agent, block in zip(numbers, members, strict=True)
        ]

    def cycle(self, blocks: Sequence[str], number: int) -> int:
        """That of round `number`."""
        ends, number = 0, max(0, number - self.heads_first)
        for cycle in range(self.schedule["cycles"]):
            if number < (ends := ends + self._rounds_of_a_cycle(blocks, cycle)):
                return cycle
        raise IndexError(number)

    def _rounds_of_a_cycle(self, blocks: Sequence[str], cycle: int) -> int:
        if self.averages:
            return 1
        whole, rest = divmod(len(blocks), self._in_cycle(cycle, "wave"))
        return int(whole + bool(rest))

    def _in_cycle(self, cycle: int, field: str) -> Any:
        """What the schedule says for a cycle: the first may have its own."""
        said = self._first[field] if cycle == 0 else None
        return self.schedule[field] if said is None else said

    def _length(self, cycle: int) -> dict[str, Any]:
        """Steps or epochs of a visit."""
        own = {field: self._first[field] for field in ("steps", "epochs")} if cycle == 0 else {}
        return own if any(value is not None for value in own.values()) else {field: self.train[field] for field in ("steps", "epochs")}

    def _told(self, number: int, cycle: int, blocks: list[str], name: str) -> dict[str, Any]:
        train = self.train
        rate = train["learning_rate"] * train["learning_rate_decay"] ** cycle
        groups = [{"blocks": blocks, "learning_rate": rate}]
        if along := [other for other in self.schedule["always"] if other not in blocks]:
            first = train["always_learning_rate"] or train["learning_rate"]
            groups.append({"blocks": along, "learning_rate": first * train["always_learning_rate_decay"] ** cycle})
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{number}:{name}".encode()).digest()[:8], "big") // 2
        told = {field: train[field] for field in TRAIN} | self._length(cycle)
        return told | {
            "task": self.task.kind, "num_labels": self.task.num_labels, "label_names": self.task.label_names,
            "max_length": self.task.max_length, "groups": groups, "corrections": None, "seed": seed,
            "label_skew": train["label_skew"] or LABEL_SKEW.get(self.task.kind, "none"), "head_start": "fresh",
        }  # fmt: skip

    def _told_of_a_head(self, agent: int) -> dict[str, Any]:
        """Nothing is trained along with it, and it begins at class means."""
        groups = [{"blocks": ["head"], "learning_rate": self.train["always_learning_rate"] or self.train["learning_rate"]}]
        return self._told(0, 0, ["head"], f"head {agent}") | {"groups": groups, "head_start": "class_means"}

    def corrected(self, order: Order, blocks: Sequence[str], matrices: Mapping[str, Sequence[str]]) -> dict[str, Any] | None:
        """What a visit is told of the layers that it does not train, if it corrects any.

        `blocks` are those that the run visits, `matrices` by the names of all blocks, in the order of the model, those that may be corrected.
        """
        said, names = self.corrections, list(matrices)
        if said is None or order.told["head_start"] == "class_means":
            return None
        first = 0 if said["layers"] == "all" else min(names.index(block) for block in order.trained)
        found = [weight for name in names[first:] if name in blocks and name not in order.trained for weight in matrices[name]]
        cycle = self.cycle(blocks, order.round)
        rate = said["learning_rate"] * self.train["learning_rate_decay"] ** cycle
        told = {"rank": said["rank"], "scale": said["alpha"] / said["rank"], "learning_rate": rate, "matrices": found}
        return told if found else None

    def of_corrections(self, seats: int, cycle: int) -> float:
        """What each member of a round of so many weighs in what it corrects."""
        return float(self._in_cycle(cycle, "damping")) / seats

    def weights(
        self, block: str, counts: Sequence[Sequence[int] | None], rows: Sequence[int], cycle: int, moved: Sequence[Sequence[bool]] = ()
    ) -> list[tuple[float, list[float]]]:
        """Of each delta of a block that a round made: its factor; and those of the head's labels, where each has one of its own.

        `counts` are what its agents tell of the labels that they trained on, `rows` on how many rows in all, `moved` of each label whether a delta
        moves its row of the head.
        """
        trainers = len(counts)
        of_head = self.schedule["head_average"] or ("by_label" if self.task.kind in LABEL_SKEW else "damped")
        if self.averages:
            all_of_it = 1.0 if self.outer else float(self._outer["learning_rate"])
            factors = [all_of_it / trainers] * trainers
            if self.averaging["weights"] == "rows":
                factors = [all_of_it * one / sum(rows) for one in rows]
        elif block != "head" or block not in self.schedule["always"] or self._in_cycle(cycle, "wave") == 1 or of_head == "damped":
            factors = [float(self._in_cycle(cycle, "damping")) / trainers] * trainers
        else:
            factors = [1.0 / trainers] * trainers
        if block != "head" or of_head != "by_label" or trainers == 1:
            return [(factor, []) for factor in factors]
        said: list[list[float]] = [list(own) for own in counts if own is not None]
        if len(said) < trainers:
            said = [[factor if yes else 0.0 for yes in own] for factor, own in zip(factors, moved, strict=True)]
        sums = [sum(of_label) for of_label in zip(*said, strict=True)]
        total = sum(factors)
        return [(factor, [total * (n / all_of if all_of else 1 / trainers) for n, all_of in zip(own, sums, strict=True)])
                for factor, own in zip(factors, said, strict=True)]  # fmt: skip

    @property
    def outer(self) -> dict[str, Any] | None:
        """What is made of their mean before it is added, if it is not added as it is."""
        return self._outer if self._outer["momentum"] else None

    def codecs(self, kinds: Mapping[str, str], trained: Collection[str]) -> dict[str, str]:
        """Block → codec, of a visit that trains `trained`; `kinds` has the kind of every block."""
        policies = {"none": ("exact", "exact"), "int8": ("int8", "int8"), "int4": ("int4", "int8")}
        if self.compression["policy"] not in policies or self.compression["floor"] is not None:
            raise Unreadable(f"what the policy {self.compression['policy']} makes of a block")
        layer, other = policies[self.compression["policy"]]
        return {
            name: self.compression["trained"] if name in trained else layer if kind == "layer" else other for name, kind in kinds.items()
        }


def _section(values: Mapping[str, Any], name: str, fields: Mapping[str, Any], ignored: Collection[str] = ()) -> dict[str, Any]:
    given = values.get(name) or {}
    if strange := set(given) - set(fields) - set(ignored):
        raise Unreadable(f"the fields {sorted(strange)} of {name}")
    return {field: given.get(field, default) for field, default in fields.items()}
