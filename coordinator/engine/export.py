"""Joins a run's blocks into a model directory that transformers loads."""

import json
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from safetensors import safe_open
from torch import nn

from fedcybgd.coordinator.domain.jobs.payloads import ExportPayload, ExportResult
from fedcybgd.coordinator.domain.model_card import NAME
from fedcybgd.coordinator.engine.peft import peft_files
from fedcybgd.coordinator.engine.restore import make_again
from fedcybgd.coordinator.engine.shards import (
    Piece,
    as_directory,
    from_blob,
    from_tensor,
    shard_header,
    size_of,
    write_blob,
    write_json,
    write_shard,
)
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.adapters import ADAPTERS, FIELD, Adapters, factors_of
from fedcybgd.shared.contract.manifests import FileRef, ShardRef
from fedcybgd.shared.contract.words import JsonObject, Task
from fedcybgd.shared.models.adapters import merged
from fedcybgd.shared.models.assembly import names_by_canonical, skeleton

CONFIG = "config.json"


def export(store: EngineStore, payload: ExportPayload) -> ExportResult:
    """Store `model.safetensors` with the task model's own names, copied from the shards; memory holds a chunk of 1 MiB.

    Matrices that have an adapter are joined with it, one at a time. A form for peft has the adapters and what was trained beside them. Raises
    `ExportRefused`; `DiskTooSmall` and `NoRoomYet` before the weights are written.
    """
    for block in payload.restorations:
        make_again(store, block)
    with as_directory(store, payload.files) as folder:
        config = json.loads((folder / CONFIG).read_text())
    model = skeleton(config, payload.task)
    if payload.form == "peft":
        files = peft_files(store, payload, model, Adapters.model_validate(config[FIELD]))
        return ExportResult(after_rounds=payload.after_rounds, files=[*files, *_card(store, payload.card)])
    files = payload.files
    if FIELD in config:
        scale = Adapters.model_validate(config.pop(FIELD)).scale
        files = [write_json(store, CONFIG, config) if file.name == CONFIG else file for file in files]
    else:
        scale = 0.0
    pieces = list(joined(store, model, payload.blocks, scale))
    store.check_room(size_of(pieces))
    digest, size = write_shard(store, pieces, {"format": "pt"})
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


def _card(store: EngineStore, card: str | None) -> list[FileRef]:
    if card is None:
        return []
    digest, size = write_blob(store, card.encode())
    return [FileRef(name=NAME, digest=digest, size=size)]
