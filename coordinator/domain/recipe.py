"""Recipes: starting values of a run file, chosen by rule from the rows, the model and the number of agents.

Where each number comes from stands in docs/run-file.md. What they come to is measured by `python -m benchmarks.recipes`, which calls the same function.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedcybgd.shared.contract.words import CLASSIFICATIONS

RecipeTask = Literal["text-classification", "image-classification", "causal-lm", "extractive-qa"]
"""Tasks that there is a recipe for"""
IMAGES: RecipeTask = "image-classification"
AGENTS = 6
"""Where nobody says how many there are"""
TO_A_HELD_OUT_ROW = 4
"""Rows of all agents together, where nobody says how many: as if a fifth of all rows had been held out"""
DAMPING = {1: 1.0, 2: 0.5, 3: 0.4}
"""By blocks of a wave: two or three at once, undamped, go too far; as measured on MiniLM"""
SHORTEST, STEP = 16, 8
"""Of `task.max_length`: the least, and what it is a multiple of"""
WINDOW = 128
"""Tokens of a window of text"""
LONGEST_WITH_CONTEXT = 384
"""Tokens of a question and a window of its context, as is usual for SQuAD: a longer context is cut into several"""
FEW = 300
"""Rows of an agent: from so many on a visit is one pass over them in batches of 32"""
MANY_LABELS = 10
CORRECTIONS = {"rank": 4, "learning_rate": 2e-3}
"""At which both models of the measurements did well (docs/methods.md, docs/benchmarks.md)"""
CORRECTED: Collection[RecipeTask] = ("text-classification", "causal-lm")
"""Tasks whose visits were measured with corrections"""


@dataclass(frozen=True)
class RecipeModel:
    """What a recipe goes by of a model, as the task has it."""

    name: str
    blocks: tuple[str, ...]
    width: int
    """of the hidden states"""
    positions: int | None = None
    """tokens of the longest row that it takes; None: nothing bounds it"""

    @property
    def layers(self) -> int:
        return sum(name.startswith("layers.") for name in self.blocks)


@dataclass(frozen=True)
class RecipeRows:
    """What a recipe goes by of the held-out rows, and of those that the agents have."""

    file: str
    held_out: int
    length: int
    """tokens that 99 of 100 rows do not exceed; of images, and of a text without a completion, it says nothing"""
    labels: int | tuple[str, ...] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    of_agents: int | None = None
    """all of them together; None: nobody says"""
    is_text: bool = False
    """whether all texts are one stream, cut into windows"""

    commonest: float | None = None
    """share of the held-out rows that have the commonest label"""

    unused: tuple[str, ...] = ()
    """columns that no field is read from"""

    @property
    def rows_of_agents(self) -> int:
        return self.of_agents or TO_A_HELD_OUT_ROW * self.held_out

    @property
    def num_labels(self) -> int:
        return self.labels if isinstance(self.labels, int) else len(self.labels or ())


def recipe(
    name: str, task: RecipeTask, model: RecipeModel, rows: RecipeRows, agents: int = AGENTS, corrections: bool = False
) -> dict[str, Any]:
    """The values of a run file. With `keep_best`, and a score of the model before any training, the run ends with no worse a
    score than the base model has."""
    each = rows.rows_of_agents / agents
    # Waves lost to one block after another on images, and by far (docs/benchmarks.md).
    parts = _language_model(model, rows, each) if task == "causal-lm" else _encoder(model, rows, 1 if task == IMAGES else agents, each)
    return {
        "name": name,
        "model": model.name,
        "task": {"kind": task, **_labels(rows), **({} if task == IMAGES else {"max_length": _max_length(task, model, rows)})},
        **parts,
        **({"corrections": dict(CORRECTIONS)} if corrections else {}),
        "compression": {"policy": "int8", **({"trained": "int8"} if task == "text-classification" else {})},
        "delta": {"codec": "int8"},
        "evaluate": {"held_out": rows.file, **({"columns": dict(rows.columns)} if rows.columns else {}), "every": "cycle"},
        "average_versions": {"last": 0.5},
        "keep_best": True,
        **({"calibrate": True} if task in CLASSIFICATIONS else {}),
        "agents": "all",
        "seed": 0,
    }


def _encoder(model: RecipeModel, rows: RecipeRows, agents: int, each: float) -> dict[str, Any]:
    """With a fresh head, trained along."""
    wave = max(1, min(3, model.layers // 2, agents))
    few = each < FEW
    along = [name for name in model.blocks if name in ("norm", "pooler", "head")]
    rate = _rate(6e-4 if wave > 1 else 3e-4, 384, model.width, 1.5)
    means = rows.num_labels > 2 and wave > 1 and "head" in along
    return {
        "schedule": {
            "cycles": 6 if few else 5, "agents": "rotating", "blocks": ["layers"], "always": along, "wave": wave, "damping": DAMPING[wave],
            **({"head_start": "class_means"} if means else {}),
        },
        "train": {
            "epochs": 2 if few else 1, "batch_size": 32 if not few else 16 if each >= 96 else 8,
            "learning_rate": rate / 2 if few else rate, "learning_rate_decay": 0.75,
            "always_learning_rate": 5e-3 if rows.num_labels > MANY_LABELS else 2e-3, "always_learning_rate_decay": 0.75,
            "weight_decay": 0.01,
        },
    }  # fmt: skip


def _language_model(model: RecipeModel, rows: RecipeRows, each: float) -> dict[str, Any]:
    along = [name for name in model.blocks if name == "norm"]
    steps = max(10, min(60, round(each * rows.length / (8 * WINDOW)))) if rows.is_text else max(10, min(60, round(each / 8)))
    return {
        "schedule": {"cycles": 2, "agents": "rotating", "blocks": ["all"], "always": along},
        "train": {"steps": steps, "batch_size": 8, "learning_rate": _rate(3e-3, 64, model.width, 1.25), "learning_rate_decay": 0.75},
    }


def _rate(measured: float, at: int, width: int, power: float) -> float:
    """A learning rate that was good at one width, at another: wider models want smaller steps. To two digits."""
    return float(f"{measured * (at / max(1, width)) ** power:.1e}")


def _labels(rows: RecipeRows) -> dict[str, Any]:
    if rows.labels is None:
        return {}
    return {"labels": rows.labels if isinstance(rows.labels, int) else list(rows.labels)}


def _max_length(task: RecipeTask, model: RecipeModel, rows: RecipeRows) -> int:
    wanted = WINDOW if rows.is_text else max(SHORTEST, -(-rows.length // STEP) * STEP)
    most = LONGEST_WITH_CONTEXT if task == "extractive-qa" else wanted
    return min(wanted, most, model.positions or wanted)
