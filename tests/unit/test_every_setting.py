"""Every field of the run file does something: another value makes another story, there where the field is said to act."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.db.base import Base, Database
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.shared.contract.training import Corrections, ParameterGroup, TrainSettings
from tests.support.methods import all_averaged
from tests.support.story import HELD_OUT, Story, stage
from tests.support.training import Home, unset_rows

ROWS, OTHERS = HELD_OUT
PLAIN: dict[str, Any] = {
    "name": "story", "model": "small", "task": {"kind": "text-classification", "labels": 3, "max_length": 16},
    "schedule": {"cycles": 2, "always": ["head"]},
    "train": {"steps": 4},
    "evaluate": {"held_out": "rows.csv", "digest": ROWS},
}  # fmt: skip
Changes = Mapping[str, Any]
ASIDES = {"patience", "attempts"}

EFFECTS: dict[str, tuple[str, Any, Changes]] = {
    # field: (where it acts, another value, what else both run files say)
    "name": ("assignment", "other", {}),
    "model": ("prepare", "large", {}),
    "task.kind": ("assignment", "causal-lm", {"task.labels": None, "schedule.always": []}),
    "task.labels": ("assignment", ["a", "b", "c"], {}),
    "task.max_length": ("assignment", 32, {}),
    "method": ("assignment", "all-averaged", {}),
    "whole.fraction": ("assignment", 0.4, {"method": "whole"}),
    "whole.weights": ("apply", "equal", {"method": "whole"}),
    "whole.outer.learning_rate": ("apply", 0.5, {"method": "whole"}),
    "whole.outer.momentum": ("apply", 0.9, {"method": "whole"}),
    "whole.outer.nesterov": ("apply", True, {"method": "whole", "whole.outer.momentum": 0.9}),
    "adapters.fraction": ("assignment", 0.4, {"method": "adapters"}),
    "adapters.weights": ("apply", "equal", {"method": "adapters"}),
    "adapters.outer.learning_rate": ("apply", 0.5, {"method": "adapters"}),
    "adapters.outer.momentum": ("apply", 0.9, {"method": "adapters"}),
    "adapters.outer.nesterov": ("apply", True, {"method": "adapters", "adapters.outer.momentum": 0.9}),
    "adapters.matrices": ("prepare", ["q"], {"method": "adapters"}),
    "adapters.rank": ("prepare", 2, {"method": "adapters"}),
    "adapters.alpha": ("prepare", 2.0, {"method": "adapters"}),
    "adapters.combine": ("assignment", "handed", {"method": "adapters"}),
    "corrections.rank": ("assignment", 2, {"corrections.matrices": ["linear"]}),
    "corrections.alpha": ("assignment", 2.0, {"corrections.matrices": ["linear"]}),
    "corrections.layers": ("assignment", "above", {"corrections.matrices": ["linear"]}),
    "corrections.matrices": ("prepare", ["q"], {"corrections.rank": 4}),
    "corrections.learning_rate": ("assignment", 0.1, {"corrections.matrices": ["linear"]}),
    "schedule.cycles": ("end", 1, {}),
    "schedule.order": ("assignment", "descending", {}),
    "schedule.agents": ("assignment", "fixed", {}),
    "schedule.blocks": ("assignment", ["layers"], {}),
    "schedule.always": ("assignment", ["head", "pooler"], {}),
    "schedule.layers_per_block": ("assignment", 2, {}),
    "schedule.reassign_after_s": ("patience", 30, {}),
    "schedule.wave": ("assignment", 3, {}),
    "schedule.damping": ("apply", 0.5, {}),
    "schedule.first_cycle.wave": ("assignment", 3, {"schedule.first_cycle.steps": 2}),
    "schedule.first_cycle.damping": ("apply", 0.5, {"schedule.first_cycle.steps": 2}),
    "schedule.first_cycle.steps": ("assignment", 2, {"schedule.first_cycle.wave": 3}),
    "schedule.first_cycle.epochs": ("assignment", 0.5, {"schedule.first_cycle.wave": 3}),
    "schedule.head_average": ("apply", "damped", {"schedule.wave": 3, "schedule.damping": 0.5}),
    "schedule.head_start": ("prepare", "class_means", {}),
    "schedule.wave_deadline_s": ("deadline", 60, {"schedule.wave": 3}),
    "schedule.max_attempts": ("attempts", 9, {}),  # fewer than six make no difference: each of three agents is asked twice
    "train.steps": ("assignment", 5, {}),
    "train.epochs": ("assignment", 2.0, {"train.steps": None}),
    "train.batch_size": ("assignment", 8, {}),
    "train.learning_rate": ("assignment", 0.1, {}),
    "train.learning_rate_decay": ("assignment", 0.5, {}),
    "train.always_learning_rate": ("assignment", 0.1, {}),
    "train.always_learning_rate_decay": ("assignment", 0.5, {}),
    "train.label_skew": ("assignment", "none", {}),
    "train.warmup_steps": ("assignment", 1, {}),
    "train.weight_decay": ("assignment", 0.1, {}),
    "train.max_grad_norm": ("assignment", None, {}),
    "train.precision": ("assignment", "bfloat16", {}),
    "train.optimizer": ("assignment", "adamw-8bit", {}),
    "average_versions.last": ("conclude", 0.25, {"schedule.cycles": 1, "average_versions.last": 0.75}),
    "average_versions.keep": ("conclusion", "average", {"schedule.cycles": 1, "average_versions.last": 0.75}),
    "keep_best": ("conclude", True, {"schedule.cycles": 1, "evaluate.every": "round"}),
    "calibrate": ("conclude", True, {"schedule.cycles": 1}),
    "stop.patience": ("end", 2, {"stop.patience": 1, "evaluate.every": "round"}),
    "evaluate.held_out": ("evaluate", "rows.jsonl", {}),
    "evaluate.columns": ("evaluate", {"text": "question"}, {}),
    "evaluate.every": ("evaluate", "end", {}),
    "evaluate.digest": ("evaluate", OTHERS, {}),
    "evaluate.format": ("evaluate", "jsonl", {}),
    "evaluate.separator": ("evaluate", ";", {}),
    "evaluate.encoding": ("evaluate", "latin-1", {}),
    "evaluate.quotes": ("evaluate", False, {}),
    "evaluate.first_label": ("evaluate", 1, {}),
    "compression.policy": ("assignment", "int4", {}),
    "compression.trained": ("assignment", "int8", {}),
    "compression.drop_ratio": ("assignment", 0.0, {"compression.policy": "hybrid"}),
    "compression.prune_ratio": ("assignment", 0.5, {"compression.policy": "hybrid"}),
    "compression.floor": ("assignment", 0.9, {"compression.policy": "int4"}),
    "compression.below_floor": ("end", "refuse", {"compression.policy": "int4", "compression.floor": 0.9}),
    "compression.delta_patches": ("assignment", True, {}),
    "compression.calibration_rows": ("fidelity", 8, {}),
    "delta.codec": ("assignment", "int4", {}),
    "delta.error_feedback": ("assignment", True, {}),
    "exposure.max_exact_blocks": ("assignment", 4, {}),
    "admission.max_relative_norm": ("end", 3.0, {}),
    "admission.gate": ("gate", "enforce", {}),
    "admission.average": ("apply", "median", {"schedule.wave": 3}),
    "admission.norm_band": ("assignment", 1.5, {}),
    "agents": ("participants", ["ann", "bob"], {}),
    "lease_s": ("assignment", 30, {}),
    "seed": ("assignment", 1, {}),
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields that are no sections."""
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        parts = (annotation, *getattr(annotation, "__args__", ()))
        section = next((t for t in parts if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if section is None:
            yield prefix + name
        else:
            yield from leaves(section, f"{prefix}{name}.")


def with_changes(changes: Changes) -> RunFile:
    values: dict[str, Any] = {name: dict(value) if isinstance(value, dict) else value for name, value in PLAIN.items()}
    for path, value in changes.items():
        *sections, leaf = path.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return RunFile.model_validate(values)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('story') / 'test.db'}")
    Base.metadata.create_all(database.engine)
    stage(database)
    with all_averaged():
        yield database
    database.close()


_known: dict[str, dict[str, list[Any]]] = {}


def told(database: Database, changes: Changes, asides: bool = True) -> dict[str, list[Any]]:
    key = repr((changes, asides))
    if key not in _known:
        _known[key] = Story(database, with_changes(changes), asides).told
    return _known[key]


def test_no_field_is_without_an_effect_that_is_looked_at() -> None:
    assert set(leaves(RunFile)) == set(EFFECTS)


@pytest.mark.parametrize("field", list(leaves(RunFile)))
def test_another_value_makes_another_story(database: Database, field: str) -> None:
    where, value, also = EFFECTS[field]
    asides = where in ASIDES
    one = told(database, also if field != "task.kind" else {}, asides)
    other = Story(database, with_changes({**also, field: value}), asides, where, one.get(where, [])).told
    assert one.get(where) != other.get(where)


def test_the_same_run_file_makes_the_same_story(database: Database) -> None:
    one = told(database, {})
    assert one == Story(database, with_changes({})).told
    assert one["end"] == ['["running", null, 10]']
    assert len(one["assignment"]) > 5
    assert {"plan", "offer", "assignment", "admit", "apply", "evaluate", "fidelity"} <= set(one)


CORRECTIONS = Corrections(rank=2, scale=1.0, learning_rate=1e-2, matrices=["encoder.layer.0.output.dense.weight"])
VISIT: dict[str, tuple[Any, Mapping[str, Any]]] = {
    # what an agent is told: (another value, what it is told beside it)
    "steps": (2, {}),
    "epochs": (2.0, {"steps": None}),
    "batch_size": (3, {}),
    "warmup_steps": (0, {}),
    "weight_decay": (0.5, {}),
    "max_grad_norm": (1e-3, {}),
    "precision": ("bfloat16", {}),
    "optimizer": ("adamw-8bit", {}),
    "label_skew": ("logit_adjustment", {}),
    "head_start": ("class_means", {"groups": [ParameterGroup(blocks=["head"], learning_rate=2e-2)]}),
    "task": ("causal-lm", {}),
    "num_labels": (2, {}),
    "label_names": (["c", "b", "a"], {}),
    "groups": ([ParameterGroup(blocks=["layers.1"], learning_rate=2e-2)], {}),
    "max_length": (5, {}),
    "corrections": (CORRECTIONS, {}),
    "seed": (8, {}),
}


def outcome(home: Home, values: Mapping[str, Any]) -> bytes | str:
    """The delta of a visit, or the kind of error that it ended with."""
    request = home.request("layers.1", label_names=["a", "b", "c"])
    train, data = TrainSettings.model_validate({**dict(request.train), **values}), request.data.model_copy(update={"tell_labels": True})
    request = request.model_copy(update={"train": train, "data": data})
    try:
        Visitor("cpu").visit(request, lambda _: None, lambda: False)
    except Exception as error:  # whichever it is: it comes of the setting
        return type(error).__name__
    return Path(request.delta_path).read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Home:
    made = Home(tmp_path_factory.mktemp("home"), bert, "bert")
    named = made.rows.read_text().replace('"label": 0', '"label": "a"').replace('"label": 1', '"label": "b"')
    made.rows.write_text(named)
    unset_rows(made, [1])
    return made


def test_nothing_that_an_agent_is_told_is_not_looked_at() -> None:
    assert set(TrainSettings.model_fields) == set(VISIT)


@pytest.mark.parametrize("field", list(VISIT))
def test_an_agent_that_is_told_otherwise_does_otherwise(home: Home, field: str) -> None:
    value, beside = VISIT[field]
    plain = outcome(home, beside)
    assert isinstance(plain, bytes), plain
    assert outcome(home, {**beside, field: value}) != plain
