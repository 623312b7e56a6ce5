"""Joins a run's blocks into a model directory that transformers loads, or its adapters into one that peft loads."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from fedcybgd.coordinator.domain.jobs.payloads import ExportPayload, ExportResult
from fedcybgd.coordinator.domain.model_card import NAME
from fedcybgd.coordinator.engine.shards import (
    Piece,
    as_directory,
    from_blob,
    from_tensor,
    shard_header,
    write_blob,
    write_json,
    write_shard,
)
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.adapters import ADAPTERS, FIELD, LEFT, RIGHT, Adapters, factors_of, is_factor
from fedcybgd.shared.contract.manifests import FileRef, ShardRef
from fedcybgd.shared.contract.words import JsonObject, Task
from fedcybgd.shared.models.adapters import has_inputs_first, merged
from fedcybgd.shared.models.assembly import names_by_canonical, skeleton

CONFIG = "config.json"


class ExportRefused(Invalid):
    """What was trained beside the adapters has no place in a PEFT directory."""

    code = "export_refused"


def export(store: EngineStore, payload: ExportPayload) -> ExportResult:
    """Store `model.safetensors` with the task model's own names, copied from the shards; memory holds a chunk of 1 MiB.

    Matrices that have an adapter are joined with it, one at a time. A form for peft has the adapters and what was trained beside them. Raises
    `ExportRefused`.
    """
    with as_directory(store, payload.files) as folder:
        config = json.loads((folder / CONFIG).read_text())
    model = skeleton(config, payload.task)
    if payload.form == "peft":
        return ExportResult(after_rounds=payload.after_rounds, files=_peft(store, payload, model, Adapters.model_validate(config[FIELD])))
    files = payload.files
    if FIELD in config:
        scale = Adapters.model_validate(config.pop(FIELD)).scale
        files = [write_json(store, CONFIG, config) if file.name == CONFIG else file for file in files]
    else:
        scale = 0.0
    digest, size = write_shard(store, list(joined(store, model, payload.blocks, scale)), {"format": "pt"})
    weights = FileRef(name="model.safetensors", digest=digest, size=size)
    return ExportResult(after_rounds=payload.after_rounds, files=[*files, weights, *_card(store, payload.card)])


def pieces_of(store: EngineStore, config: JsonObject, task: Task, blocks: Sequence[ShardRef], scale: float) -> Iterator[Piece]:
    """As `joined`, of the model that an export's config.json describes."""
    return joined(store, skeleton(config, task), blocks, scale)


def joined(store: EngineStore, model: nn.Module, blocks: Sequence[ShardRef], scale: float) -> Iterator[Piece]:
    """The tensors of a model, by the names that it gives them; what its adapters add counts `scale` times."""
    names = names_by_canonical(model)
    adapters = next((block.digest for block in blocks if block.block == ADAPTERS), None)
    factors = shard_header(store, adapters).tensors if adapters is not None else {}
    for block in blocks:
        header = shard_header(store, block.digest)
        for name, tensor in header.tensors.items():
            if adapters is not None and factors_of(name)[0] in factors:
                make = partial(_merged, store, block.digest, adapters, name, scale)
                yield from_tensor(names[name], tensor.shape, torch.float32, make)
            elif block.digest != adapters:
                yield from_blob(store, block.digest, header, tensor, names[name])


def _merged(store: EngineStore, weights: str, factors: str, name: str, scale: float) -> torch.Tensor:
    left, right = factors_of(name)
    with (
        store.localised(weights) as one,
        store.localised(factors) as other,
        safe_open(one, framework="pt") as file,
        safe_open(other, framework="pt") as beside,
    ):
        return merged(file.get_tensor(name), beside.get_tensor(left), beside.get_tensor(right), scale)


def _peft(store: EngineStore, payload: ExportPayload, model: nn.Module, adapters: Adapters) -> list[FileRef]:
    names = names_by_canonical(model)
    saved = [name for block in payload.blocks for name in shard_header(store, block.digest).tensors if not is_factor(name)]
    trained = list(dict.fromkeys(names[name].rpartition(".")[0] for name in saved))
    _check_saved(model, trained, saved, adapters)
    turned = any(has_inputs_first(model, names[weight]) for weight in adapters.matrices)
    pieces = list(beside(store, payload.blocks, turned, {name: _called(path, turned) for name, path in names.items()}))
    digest, size = write_shard(store, pieces, {"format": "pt"})
    base, _, revision = (payload.base or "").partition("@")
    config = {
        # Named, a task makes peft keep modules of its own choice, which many heads are not.
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base or None, "revision": revision or None, "inference_mode": True,
        "r": adapters.rank, "lora_alpha": adapters.alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": turned,
        "target_modules": [names[weight].rpartition(".")[0] for weight in adapters.matrices], "modules_to_save": trained or None,
    }  # fmt: skip
    weights = FileRef(name="adapter_model.safetensors", digest=digest, size=size)
    tokenizer = [file for file in payload.files if file.name not in (CONFIG, "generation_config.json")]
    return [*tokenizer, write_json(store, "adapter_config.json", config), weights, *_card(store, payload.card)]


def beside(store: EngineStore, blocks: Sequence[ShardRef], turned: bool, names: Mapping[str, str] | None = None) -> Iterator[Piece]:
    """The tensors of a directory for peft, by the names that it gives them; factors are `turned` round where matrices are (inputs, outputs)."""
    for block in blocks:
        header = shard_header(store, block.digest)
        for name, tensor in header.tensors.items():
            called = names[name] if names else name
            if turned and is_factor(name):
                yield from_tensor(called, tensor.shape[::-1], torch.float32, partial(_turned, store, block.digest, name))
            else:
                yield from_blob(store, block.digest, header, tensor, called)


def _turned(store: EngineStore, digest: str, name: str) -> torch.Tensor:
    with store.localised(digest) as place, safe_open(place, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor.T


def _called(path: str, turned: bool) -> str:
    """A tensor's name as peft has it: of two factors the one that meets the inputs is A."""
    module, _, leaf = path.rpartition(".")
    if leaf not in (LEFT, RIGHT):
        return f"base_model.model.{path}"
    return f"base_model.model.{module}.lora_{'A' if leaf == (LEFT if turned else RIGHT) else 'B'}.weight"


def _check_saved(model: nn.Module, trained: Sequence[str], saved: Sequence[str], adapters: Adapters) -> None:
    """peft keeps what was trained beside adapters as copies of modules, which nothing else may be a part of."""
    weights: Mapping[int, int] = _uses(model)
    for path in trained:
        module: Any = model.get_submodule(path)
        tied = any(weights[id(parameter)] > 1 for parameter in module.parameters())
        if tied or any(True for _ in module.children()) or set(adapters.matrices) & set(saved):
            why = "is tied to another" if tied else "is no module of its own, or has adapters"
            raise ExportRefused(
                f"{path} was trained beside the adapters and {why}, which a PEFT directory has no place for: export it merged"
            )


def _uses(model: nn.Module) -> dict[int, int]:
    found: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found[id(parameter)] = found.get(id(parameter), 0) + 1
    return found


def _card(store: EngineStore, card: str | None) -> list[FileRef]:
    if card is None:
        return []
    digest, size = write_blob(store, card.encode())
    return [FileRef(name=NAME, digest=digest, size=size)]
