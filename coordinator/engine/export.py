"""Joins a run's blocks into a model directory that transformers loads."""

import json

from fedcybgd.coordinator.domain.jobs.payloads import ExportPayload, ExportResult
from fedcybgd.coordinator.domain.model_card import NAME
from fedcybgd.coordinator.engine.shards import Piece, as_directory, from_blob, shard_header, write_blob, write_shard
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.models.assembly import names_by_canonical, skeleton


def export(store: EngineStore, payload: ExportPayload) -> ExportResult:
    """Store `model.safetensors` with the task model's own names, copied from the shards; memory holds a chunk of 1 MiB."""
    with as_directory(store, payload.files) as folder:
        config = json.loads((folder / "config.json").read_text())
    names = names_by_canonical(skeleton(config, payload.task))
    pieces: list[Piece] = []
    for block in payload.blocks:
        header = shard_header(store, block.digest)
        pieces += [from_blob(store, block.digest, header, tensor, names[name]) for name, tensor in header.tensors.items()]
    digest, size = write_shard(store, pieces, {"format": "pt"})
    weights = FileRef(name="model.safetensors", digest=digest, size=size)
    return ExportResult(after_rounds=payload.after_rounds, files=[*payload.files, weights, *_card(store, payload.card)])


def _card(store: EngineStore, card: str | None) -> list[FileRef]:
    if card is None:
        return []
    digest, size = write_blob(store, card.encode())
    return [FileRef(name=NAME, digest=digest, size=size)]
