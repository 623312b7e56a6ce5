"""Splits a checkpoint into blocks and stores each as a shard, by copying bytes: no weight is ever loaded."""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from coordinator.domain.job import ImportPayload, ImportResult, StoredBlock, TensorShape
from coordinator.engine.checkpoint import Source, read_checkpoint
from coordinator.engine.model_directory import ModelDirectory, ModelRefused, locate
from coordinator.engine.shards import from_file, write_shard
from coordinator.engine.tokenizers import import_tokenizer
from coordinator.storage import BlobStore
from shared.assembly import names_by_canonical, skeleton
from shared.blocks import FRESHLY_MADE, BlockSpec, partition
from shared.configuration import ModelUnknown, plain
from shared.families import base_prefix, canonical
from shared.safetensors_header import FLOAT_DTYPES

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
FEW_LAYERS = 48
LEGACY_NAMES = ((re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"), (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"))


def import_model(store: BlobStore, payload: ImportPayload) -> ImportResult:
    """Store the model at a directory or hub id, block by block.

    Peak memory is that of the headers and a chunk of 1 MiB. Raises `ModelRefused` for pickled weights, models that need
    remote code, and tensors that are missing, unknown or of the wrong shape, by name.
    """
    folder = locate(payload.source)
    given = _given_config(folder)
    config = _checked(folder, given)
    checkpoint = read_checkpoint(folder, given.get("transformers_weights"))
    _check_number_of_layers(config, checkpoint)
    model = skeleton(config, None)
    blocks = partition(model)
    sources, left_out = _match(checkpoint, blocks, model)
    tokenizer = import_tokenizer(store, folder, config, _embedding_rows(model))
    stored = [_store_block(store, block, sources) for block in blocks if any(t.name in sources for t in block.tensors)]
    return ImportResult(
        config=config,
        files=tokenizer.files,
        blocks=stored,
        left_out=left_out,
        num_parameters=sum(b.num_parameters for b in stored),
    )


def _given_config(folder: ModelDirectory) -> dict[str, Any]:
    if not folder.has("config.json"):
        raise ModelRefused(f"{folder} has no config.json: it is no model directory")
    return folder.json("config.json")


def _checked(folder: ModelDirectory, config: dict[str, Any]) -> dict[str, Any]:
    where = folder.path / "config.json"
    if not isinstance(config.get("model_type"), str):
        raise ModelRefused(f"{where} names no model_type")
    if any(part.get("quantization_config") for part in (config, *(v for v in config.values() if isinstance(v, dict)))):
        raise ModelRefused("this checkpoint is quantized; add the original one, whose weights are floats")
    try:
        return plain(config)
    except ModelUnknown as error:
        raise ModelRefused(f"{where}: {error.message}") from error


def _check_number_of_layers(config: dict[str, Any], checkpoint: dict[str, Source]) -> None:
    # A model of many layers takes a while to be laid out; layers that share their weights are few.
    for name in LAYERS:
        number = config.get(name)
        if isinstance(number, int) and number > max(FEW_LAYERS, len(checkpoint)):
            raise ModelRefused(f"config.json: {name} is {number}, but the checkpoint has only {len(checkpoint)} tensors")


def _match(checkpoint: dict[str, Source], blocks: list[BlockSpec], model: nn.Module) -> tuple[dict[str, Source], list[str]]:
    """The source of each canonical name, and the names of the checkpoint that the model does without."""
    prefix = base_prefix(model)
    expected = {t.name: t for block in blocks for t in block.tensors}
    aliases = {canonical(name, prefix) for name in model.state_dict()} | {canonical(name, prefix) for name, _ in model.named_buffers()}
    base_names = {name.split(".")[0] for name, full in names_by_canonical(model).items() if not prefix or full != name}
    sources: dict[str, Source] = {}
    left_out, foreign = [], []
    for raw, source in checkpoint.items():
        name = raw
        for pattern, modern in LEGACY_NAMES:
            name = pattern.sub(modern, name)
        name = canonical(name, prefix)
        if name in expected:
            sources[name] = source
        elif name in aliases or name.split(".")[0] not in base_names:
            left_out.append(raw)  # a second name of a tied tensor, a buffer that is computed anew, or a head of another task
        else:
            foreign.append(raw)
    wrong = [
        f"{name} is {s.tensor.dtype} {list(s.tensor.shape)}, must be a float {list(expected[name].shape)}"
        for name, s in sources.items()
        if s.tensor.shape != expected[name].shape or (expected[name].is_parameter and s.tensor.dtype not in FLOAT_DTYPES)
    ]
    # What comes after the base model may be made afresh for a run; the base must be whole.
    missing = [t.name for block in blocks if block.kind not in FRESHLY_MADE for t in block.tensors if t.name not in sources]
    if problems := [*_report("unknown", foreign), *_report("missing", missing), *_report("wrong", wrong)]:
        raise ModelRefused(
            f"the checkpoint does not fit {type(model).__name__}: {'; '.join(problems)}",
            unknown=foreign[:50],
            missing=missing[:50],
            wrong=wrong[:50],
        )
    return sources, left_out


def _report(what: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [f"{what}: {', '.join(listed[:5])}" + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")] if listed else []


def _store_block(store: BlobStore, block: BlockSpec, sources: dict[str, Source]) -> StoredBlock:
    present = [t for t in block.tensors if t.name in sources]
    pieces = [from_file(sources[t.name].path, sources[t.name].header, sources[t.name].tensor, t.name) for t in present]
    digest, size = write_shard(store, pieces)
    return StoredBlock(
        name=block.name, kind=block.kind, digest=digest, size=size,
        num_parameters=sum(t.numel for t in present if t.is_parameter),
        tensors=[TensorShape(name=t.name, shape=list(t.shape)) for t in present],
    )  # fmt: skip


def _embedding_rows(model: nn.Module) -> int | None:
    try:
        weight = model.get_input_embeddings().weight  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0])
