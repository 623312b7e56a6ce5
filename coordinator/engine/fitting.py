"""Fits a checkpoint to the models that can be made of its configuration: what each block gets, what is left out, what is wrong."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fedcybgd.coordinator.engine.checkpoint import Source
from fedcybgd.coordinator.engine.loading import Computed, Found, Loading, ignored, loading
from fedcybgd.coordinator.engine.model_directory import ModelRefused
from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.contract.words import CLASSIFICATIONS, Task
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.files.safetensors_header import FLOAT_DTYPES
from fedcybgd.shared.models.assembly import base_skeleton, names_by_canonical, skeleton
from fedcybgd.shared.models.blocks import FRESHLY_MADE, BlockSpec, TensorSpec, partition
from fedcybgd.shared.models.families import base_prefix, canonical
from fedcybgd.shared.models.model_classes import sees_what_follows, settings_of, tasks_of

WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
WRAPPED_PARTS = {
    "_orig_mod": "torch.compile", "_fsdp_wrapped_module": "FullyShardedDataParallel", "_checkpoint_wrapped_module": "activation checkpointing",
}  # fmt: skip
"""Parts of names that layers have which were wrapped one by one"""
OF_PEFT = frozenset({"base_layer", "lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector", "base_model"})
"""Parts of names in a model that was saved with its adapters in it"""
OF_QUANTIZED = frozenset(
    {
        "qweight", "qzeros", "scales", "g_idx", "SCB", "absmax", "quant_map", "weight_scale", "weight_scale_inv", "weight_packed",
        "weight_zero_point", "input_scale",
    }
)  # fmt: skip
"""Last parts of names in checkpoints of GPTQ, AWQ, bitsandbytes, compressed-tensors and the like"""
NARROW = ("F4", "F6_", "F8_")
"""How types of numbers begin that no model is trained in"""
BUFFERS = frozenset({"inv_freq", "position_ids", "token_type_ids", "masked_bias", "causal_mask"})
"""Last parts of names that older versions saved what a model computes for itself under."""


@dataclass
class FittedBlock:
    name: str
    kind: str
    tensors: list[tuple[TensorSpec, Found]]


@dataclass
class Fitted:
    config: dict[str, Any]
    blocks: list[FittedBlock]
    left_out: list[str]
    embedding_rows: int | None
    """None: where the model does not say which its embeddings of tokens are"""


@dataclass
class _Candidate:
    """A class of model that the configuration can be made into, and what of the checkpoint it would get."""

    task: Task | None
    model: nn.Module
    blocks: list[BlockSpec]
    loaded: Loading
    found: dict[str, Found] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.wrong)


def fit(config: dict[str, Any], checkpoint: Mapping[str, Source]) -> Fitted:
    """What each block of the model is made of. Heads of several tasks are kept side by side, each under its own names.

    Raises `ModelRefused` with the tensors that are missing, wrong or unknown; `PartitionError` for a model that has no blocks.
    """
    candidates = _candidates(config, checkpoint)
    if not all(candidate.loaded.tied for candidate in candidates):
        config = _untied(config)
        candidates = _candidates(config, checkpoint, {c.task: c.loaded for c in candidates})
    best = min(candidates, key=lambda candidate: candidate.faults)
    unexpected = set.intersection(*(set(c.loaded.unexpected) for c in candidates))
    left_out = _LeftOut(candidates)
    unknown = [raw for raw in checkpoint if raw in unexpected and not left_out.may_have(raw, checkpoint[raw])]
    if best.faults or unknown:
        problems = [
            *_wrapped(checkpoint),
            *_quantized(checkpoint),
            *_report("unknown", unknown),
            *_report("missing", best.missing),
            *_report("wrong", best.wrong),
        ]
        raise ModelRefused(
            f"the checkpoint does not fit {type(best.model).__name__}: {'; '.join(problems)}",
            unknown=unknown[:50],
            missing=best.missing[:50],
            wrong=best.wrong[:50],
        )
    return Fitted(config, _union(best, candidates), [raw for raw in checkpoint if raw in unexpected], _embedding_rows(best.model))


def _embedding_rows(model: nn.Module) -> int | None:
    try:
        return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return None


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    return config | {"tie_word_embeddings": False} | ({"text_config": _untied(text)} if isinstance(text, dict) else {})


def _candidates(config: dict[str, Any], checkpoint: Mapping[str, Source], before: Mapping[Any, Loading] | None = None) -> list[_Candidate]:
    """`before`: what was found when matrices counted as tied, so that a name without a tensor of its own has its partner's."""
    settings = settings_of(config)
    tasks = [task for task in tasks_of(settings) if _adds(task, settings, checkpoint)]
    made: list[_Candidate] = []
    refusal: PartitionError | None = None
    for task in (None, *tasks):
        model = base_skeleton(config) if task is None else skeleton(config, task)
        try:
            blocks = partition(model)
        except PartitionError as error:
            refusal = refusal or error
            continue
        loaded = loading(model, checkpoint)
        if before is not None and task in before:
            loaded.found = before[task].found | loaded.found
        candidate = _Candidate(task, model, blocks, loaded)
        _compare(candidate)
        made.append(candidate)
    if not made:
        raise refusal or ModelUnknown(f"no model can be made of the type {settings.model_type}")
    return made


def _adds(task: Task, settings: Any, checkpoint: Mapping[str, Source]) -> bool:
    """Whether the task's class may have a place for what others have none for; a head that points at answers is all that its own has."""
    if task == "extractive-qa":
        return any("qa_outputs." in raw for raw in checkpoint)
    return task != "causal-lm" or not sees_what_follows(settings)


def _compare(candidate: _Candidate) -> None:
    full = names_by_canonical(candidate.model)
    for block in candidate.blocks:
        for spec in block.tensors:
            found = candidate.loaded.found.get(full[spec.name])
            if found is not None and not _fits(spec, found, block, candidate.task):
                candidate.wrong.append(f"{spec.name} is {found.dtype} {list(found.shape)}, must be a float {list(spec.shape)}")
            elif found is not None:
                candidate.found[spec.name] = found
            elif not spec.is_parameter:
                candidate.found[spec.name] = Computed(candidate.model.get_buffer(full[spec.name]))
            elif block.kind not in FRESHLY_MADE:  # what comes after the base model may be made afresh for a run
                candidate.missing.append(spec.name)


def _fits(spec: TensorSpec, found: Found, block: BlockSpec, task: Task | None) -> bool:
    if spec.is_parameter and found.dtype not in FLOAT_DTYPES:
        return False
    # How many labels there are is the run's to say: a head of another number is kept, and compared when a run is made.
    other_labels = block.kind == "head" and task in CLASSIFICATIONS and len(found.shape) == len(spec.shape) > 0
    return found.shape[other_labels:] == spec.shape[other_labels:]


def _union(best: _Candidate, candidates: list[_Candidate]) -> list[FittedBlock]:
    """The blocks of the class that fits best, and what only others have: a pooler, the head of another task."""
    held: set[str] = set()
    blocks: dict[str, FittedBlock] = {}
    for candidate in sorted(candidates, key=lambda c: c is not best):
        if candidate.faults:
            continue
        for block in candidate.blocks:
            tensors = [
                (spec, candidate.found[spec.name]) for spec in block.tensors if spec.name in candidate.found and spec.name not in held
            ]
            held |= {spec.name for spec, _ in tensors}
            if tensors:
                blocks.setdefault(block.name, FittedBlock(block.name, block.kind, [])).tensors.extend(tensors)
    order = ["embeddings", "layer", "norm", "pooler", "head"]
    return sorted(blocks.values(), key=lambda block: order.index(block.kind))


class _LeftOut:
    """Which tensors that no model has a place for are known to be none of its weights: heads of other tasks, and buffers."""

    def __init__(self, candidates: list[_Candidate]) -> None:
        models: list[Any] = [candidate.model for candidate in candidates]
        self._prefixes = {model.base_model_prefix for model in models}
        self._buffers = {canonical(name, base_prefix(model)) for model in models for name, _ in model.named_buffers()}
        self._parts = {part for model in models for part in _parts_of_base(model)}
        self._ignored = [re.compile(pattern) for model in models for pattern in ignored(model)]

    def may_have(self, raw: str, source: Source) -> bool:
        shape, leaf = source.tensor.shape, raw.rpartition(".")[2]
        if not shape or source.tensor.dtype not in FLOAT_DTYPES or leaf in BUFFERS or _is_mask(shape):
            return True
        names = {canonical(raw, prefix) for prefix in self._prefixes}
        if names & self._buffers or any(pattern.search(raw) for pattern in self._ignored):
            return True
        return not any(name.split(".")[0] in self._parts for name in names)


def _parts_of_base(model: nn.Module) -> set[str]:
    prefix = base_prefix(model)
    return {canonical(name, prefix).split(".")[0] for name, _ in model.named_parameters() if name.startswith(prefix)}


def _is_mask(shape: tuple[int, ...]) -> bool:
    # Older versions saved the causal mask of attention, (1, 1, positions, positions), and the number that it masks with, (1,).
    return shape == (1,) or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])


def _wrapped(checkpoint: Iterable[str]) -> list[str]:
    """What the names of a model say that was saved together with what it was trained in."""
    names = list(checkpoint)
    parts = {part: name for name in names for part in name.split(".")}
    if adapters := sorted(OF_PEFT & parts.keys()):
        return [f"it was saved with adapters in it ({parts[adapters[0]]}): merge them first (merge_and_unload of peft), and add the result"]
    return [
        f"all names begin with {prefix!r}: save the model that is inside of {wrapper}"
        for prefix, wrapper in WRAPPERS.items()
        if names and all(name.startswith(prefix) for name in names)
    ] or [f"names hold {part!r}: save the model that is inside of {wrapper}" for part, wrapper in WRAPPED_PARTS.items() if part in parts]


def _quantized(checkpoint: Mapping[str, Source]) -> list[str]:
    """What tensors say that only a quantized checkpoint has, whatever its configuration says."""
    marks = [raw for raw, source in checkpoint.items() if raw.rpartition(".")[2] in OF_QUANTIZED or source.tensor.dtype.startswith(NARROW)]
    return [f"it looks quantized ({marks[0]}): add the original one, whose weights are floats"] if marks else []


def _report(what: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [f"{what}: {', '.join(listed[:5])}" + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")] if listed else []
