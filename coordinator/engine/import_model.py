"""Splits a checkpoint into blocks and stores each as a shard, by copying bytes."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload, ImportResult
from fedcybgd.coordinator.domain.model_blocks import StoredBlock, TensorShape
from fedcybgd.coordinator.engine.checkpoint import Source, read_checkpoint, refuse_adapter
from fedcybgd.coordinator.engine.fitting import FittedBlock, fit
from fedcybgd.coordinator.engine.given import given
from fedcybgd.coordinator.engine.model_directory import ModelDirectory, ModelRefused
from fedcybgd.coordinator.engine.preprocessing import import_preprocessing, takes_images
from fedcybgd.coordinator.engine.shards import Piece, size_of, write_shard
from fedcybgd.coordinator.engine.tokenizers import import_tokenizer
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.files.configuration import OF_THE_WEIGHTS, QUANTIZED, ModelUnknown, is_quantized, plain, without
from fedcybgd.shared.tensors.dtypes import DTYPES

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
FEW_LAYERS = 48


def import_model(store: EngineStore, payload: ImportPayload) -> ImportResult:
    """Store the model at a directory or hub id, or of uploaded files, block by block: what `from_pretrained` would make of it, for every task that it can have.

    Peak memory is that of the headers and a chunk of 1 MiB; where transformers makes one tensor of several (experts), it is that of these.
    Raises `ModelRefused` for pickled weights, models that need remote code, and tensors that are missing, unknown, of the wrong
    shape or with numbers that are none, by name; `DiskTooSmall` and `NoRoomYet` before anything is written.
    """
    with given(store, payload) as folder:
        return _imported(store, folder)


def _imported(store: EngineStore, folder: ModelDirectory) -> ImportResult:
    found = _found_config(folder)
    config = _checked(folder, found)
    checkpoint = read_checkpoint(folder, found.get("transformers_weights"))
    _check_number_of_layers(config, checkpoint)
    fitted = fit(config, checkpoint)
    store.check_room(size_of(found.piece(spec.name) for block in fitted.blocks for spec, found in block.tensors))
    of_rows = (
        import_preprocessing(store, folder, config)
        if takes_images(config)
        else import_tokenizer(store, folder, config, fitted.embedding_rows)
    )
    stored = [_store_block(store, block) for block in fitted.blocks]
    return ImportResult(
        config=fitted.config,
        files=of_rows.files,
        notes=of_rows.notes,
        blocks=stored,
        left_out=fitted.left_out,
        num_parameters=sum(b.num_parameters for b in stored),
    )


def _found_config(folder: ModelDirectory) -> dict[str, Any]:
    if not folder.has("config.json"):
        refuse_adapter(folder)
        inside = folder.directories_with("config.json")
        hint = f"; {', '.join(inside[:3])} inside it {'has' if len(inside) == 1 else 'have'} one: add that" if inside else ""
        raise ModelRefused(f"{folder} has no config.json: it is no model directory{hint}")
    return folder.json("config.json")


def _checked(folder: ModelDirectory, config: dict[str, Any]) -> dict[str, Any]:
    where = folder.place("config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelRefused(f"{where} names no model_type")
    if is_quantized(config):
        raise ModelRefused(QUANTIZED)
    try:
        return without(plain(config), OF_THE_WEIGHTS)
    except ModelUnknown as error:
        raise ModelRefused(f"{where}: {error.message}") from error


def _check_number_of_layers(config: dict[str, Any], checkpoint: dict[str, Source]) -> None:
    # A model of many layers takes a while to be laid out; layers that share their weights are few.
    for name in LAYERS:
        number = config.get(name)
        if isinstance(number, int) and number > max(FEW_LAYERS, len(checkpoint)):
            raise ModelRefused(f"config.json: {name} is {number}, but the checkpoint has only {len(checkpoint)} tensors")


def _store_block(store: EngineStore, block: FittedBlock) -> StoredBlock:
    pieces = [(spec, found.piece(spec.name)) for spec, found in block.tensors]
    digest, size = write_shard(store, [_of_numbers(piece) if spec.is_parameter else piece for spec, piece in pieces])
    return StoredBlock(
        name=block.name, kind=block.kind, digest=digest, size=size,
        num_parameters=sum(math.prod(found.shape) for spec, found in block.tensors if spec.is_parameter),
        tensors=[TensorShape(name=spec.name, shape=list(found.shape)) for spec, found in block.tensors],
    )  # fmt: skip


def _of_numbers(piece: Piece) -> Piece:
    """`piece`, of a float type, whose reading raises `ModelRefused` at the first value that is infinite or no number."""

    def read() -> Iterator[bytes | memoryview]:
        for chunk in piece.read():
            if len(chunk) and not all(end.isfinite() for end in torch.frombuffer(bytearray(chunk), dtype=DTYPES[piece.dtype]).aminmax()):
                raise ModelRefused(
                    f"tensor {piece.name} holds values that are infinite or no numbers: "
                    "the checkpoint was spoilt when it was trained, or when it was saved in a smaller type"
                )
            yield chunk

    return Piece(piece.name, piece.dtype, piece.shape, read)
