"""Two readings of one run file: what the coordinator tells an agent, and what `benchmarks.reading` makes of the text by itself."""

import ast
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reading
from benchmarks.reading import Reading, Unreadable
from fedcybgd.coordinator.domain.corrections import corrections_of
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.methods.registry import method_of, rounds_in
from fedcybgd.coordinator.domain.methods.terms import VisitDelta, terms_of
from fedcybgd.coordinator.domain.model_blocks import TensorShape
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.path.open_round import train_settings
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings

BLOCKS = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]
AGENTS = ["agent-0", "agent-1", "agent-2"]
CHOICES: dict[str, dict[str, list[Any]]] = {
    "schedule": {
        "cycles": [1, 2, 3],
        "order": ["ascending", "descending", "random"],
        "agents": ["fixed", "rotating"],
        "damping": [0.5, 1.0],
        "always": [[], ["head"], ["head", "layers.1"]],
        "wave": [1, 3],
        "max_attempts": [2],
        "head_average": ["damped", "mean"],
    },
    "train": {
        "batch_size": [1, 8],
        "warmup_steps": [0, 7],
        "weight_decay": [0.0, 0.1],
        "max_grad_norm": [None, 0.3],
        "precision": ["float32", "bfloat16"],
        "optimizer": ["adamw", "adamw-8bit"],
        "learning_rate": [1e-4],
        "learning_rate_decay": [0.5],
        "always_learning_rate": [2e-3],
        "always_learning_rate_decay": [0.7],
        "label_skew": ["none"],
    },
    "delta": {"codec": ["int4"]},
    "corrections": {"rank": [2], "alpha": [3.0], "layers": ["all", "above"], "learning_rate": [1e-2], "matrices": [["linear"]]},
}
MATRICES = {name: [TensorShape(name=f"{name}.w", shape=[4, 4], linear=name.startswith("layers"))] for name in BLOCKS}  # fmt: skip


def drawn(number: int) -> dict[str, Any]:
    """A run file in which each field is said or left out."""
    draw = random.Random(number)
    labels: Any = draw.choice([3, ["a", "b", "c"]])
    classes = draw.random() < 0.7
    task = {"kind": "text-classification", "labels": labels} if classes else {"kind": "causal-lm"}
    values: dict[str, Any] = {"name": "r", "model": "m", "task": task | ({"max_length": 32} if draw.random() < 0.5 else {})}
    for section, fields in CHOICES.items():
        values[section] = {name: draw.choice(options) for name, options in fields.items() if draw.random() < 0.5}
    values["train"] |= draw.choice([{}, {"steps": 5}, {"epochs": 0.5}])
    if classes and values["train"].get("label_skew") != "none" and "head" in values["schedule"].get("always", []) and draw.random() < 0.7:
        values["schedule"]["head_start"] = "class_means"
    if draw.random() < 0.5:
        values["seed"] = draw.randrange(1000)
    if values["schedule"].get("cycles", 1) > 1:
        values["schedule"] |= draw.choice([{}, {"first_cycle": {"wave": 2, "damping": 0.3, "steps": 4}}, {"first_cycle": {"epochs": 0.2}}])
    if values["schedule"].get("order") == "random":
        for field in ("wave", "first_cycle"):
            values["schedule"].pop(field, None)  # where two want one agent, somebody has to move
    if draw.random() < 0.4:
        method, more = draw.choice([("whole", {}), ("adapters", {"rank": 2}), ("adapters", {"combine": "handed"})])
        averaging = draw.choice([{}, {"fraction": 0.5}, {"fraction": 0.1, "weights": "equal"}, {"outer": {"momentum": 0.9}}])
        values |= {"method": method, method: more | ({} if "combine" in more else averaging)}
        for field in ("order", "agents", "wave", "damping", "first_cycle", *(["head_start"] if method == "adapters" else [])):
            values["schedule"].pop(field, None)
    if "method" in values or draw.random() < 0.5:
        values.pop("corrections")
    return values


def counted(number: int) -> TrainMetrics:
    """What an agent says of a visit, its labels with it."""
    labels = [number, 2, 0]
    return TrainMetrics(steps=1, rows=sum(labels), tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1, label_counts=labels)


@pytest.mark.parametrize("begin", range(0, 200, 50))
def test_the_coordinator_tells_what_the_run_file_says(begin: int) -> None:
    for number in range(begin, begin + 50):
        values = drawn(number)
        mine, spec = Reading(values), RunFile.model_validate(values)
        assert mine.rounds(BLOCKS) == rounds_in(spec, BLOCKS)
        for round in range(mine.rounds(BLOCKS)):
            seats = method_of(spec).seats(spec, BLOCKS, AGENTS, round, spec.schedule.always)
            told = [(AGENTS.index(str(seat.agent)), train_settings(spec, seat).model_dump()) for seat in seats]
            delivered = [VisitDelta("", "", Delivered(seat.number, counted(seat.number), counted(seat.number).rows)) for seat in seats]
            for block in BLOCKS if spec.method != "block-cycle" else spec.schedule.always:
                terms = terms_of(spec.in_cycle(seats[0].cycle), block, delivered, len(seats))[0]
                say = [counted(seat.number) for seat in seats]
                mine_of = mine.weights(block, [one.label_counts for one in say], [one.rows for one in say], mine.cycle(BLOCKS, round))
                assert [(term.weight, term.rows) for term in terms] == mine_of, values
            if spec.method == "block-cycle" and seats[0].block not in spec.schedule.always:
                [term] = terms_of(spec.in_cycle(seats[0].cycle), seats[0].block, delivered[:1], len(seats))[0]
                assert [(term.weight, [])] == mine.weights(seats[0].block, [None], [1], mine.cycle(BLOCKS, round)), values
            mine_too = mine.round(BLOCKS, len(AGENTS), round)
            linear = {name: [t.name for t in tensors if t.linear] for name, tensors in MATRICES.items()}
            for seat, order in zip(seats, mine_too, strict=True):
                found = corrections_of(spec, seat, MATRICES, BLOCKS)
                assert (found.model_dump() if found else None) == mine.corrected(order, BLOCKS, linear), values
            assert told == [(order.agent, dict(order.told)) for order in mine.round(BLOCKS, len(AGENTS), round)], values


def test_nothing_that_an_agent_is_told_is_left_out() -> None:
    [order] = Reading({"task": {"kind": "causal-lm"}}).round(["layers.0"], 1, 0)
    assert set(order.told) == set(TrainSettings.model_fields)


def test_a_field_that_is_not_known_is_refused() -> None:
    task = {"kind": "causal-lm"}
    for values in (
        {"task": task, "train": {"momentum": 1}},
        {"task": task, "privacy": {}},
        {"task": task, "schedule": {"agents": "first_come"}},
    ):
        with pytest.raises(Unreadable):
            Reading(values)


def test_it_takes_nothing_from_whom_it_judges() -> None:
    tree = ast.parse(Path(reading.__file__).read_text())
    sources = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    sources += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not [source for source in sources if source.startswith("fedcybgd")]
    taken = _imports(Path(reading.__file__).with_name("reference.py"))
    assert not {s for s in taken if any(word in s for word in ("services.path", "domain.schedule", "domain.methods", "domain.seat"))}


def _imports(path: Path) -> set[str]:
    return {n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
