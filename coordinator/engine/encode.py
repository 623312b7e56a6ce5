"""Makes a block's shard in a codec, and both in the lossless coding: once for each (block version, codec)."""

import json
from functools import partial

import torch
from safetensors import safe_open
from torch import nn

from fedcybgd.coordinator.domain.jobs.payloads import EncodedRef, EncodePayload, EncodeResult, PatchMade
from fedcybgd.coordinator.engine.shards import Piece, from_tensor, write_chunks, write_shard
from fedcybgd.coordinator.storage import BlobDamaged, BlobMissing, EngineStore
from fedcybgd.shared.contract.codec import EXACT, PRUNED
from fedcybgd.shared.contract.manifests import BlobRef, FileRef
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.models.assembly import skeleton
from fedcybgd.shared.models.pruning import prune_block
from fedcybgd.shared.tensors.codecs import encode_tensor, parse_codec


class ShardEncoder:
    """Encodes blocks of one model; its skeleton is made when the first block is to be pruned."""

    def __init__(self, store: EngineStore, config: FileRef | None, task: Task | None) -> None:
        self._store, self._config, self._task = store, config, task
        self._model: nn.Module | None = None

    def encode(self, source: str, codec: str) -> EncodedRef:
        """The block whose exact shard is `source`. Memory holds one tensor of it, and all that is stored of it.

        The same source and codec give the same bytes in every process. Raises `CodecError`, also for values that are not finite.
        """
        if codec == EXACT:
            return EncodedRef(source=source, codec=codec, digest=source, size=self._store.size(source), packed=self._pack(source))
        stored: dict[str, torch.Tensor] = {}
        with self._store.localised(source) as path, safe_open(path, framework="pt") as file:
            names = list(file.keys())
            kind, percent = parse_codec(codec)
            if kind == PRUNED:
                stored = prune_block(self._skeleton(), {n: file.get_tensor(n) for n in names}, percent)
            else:
                for name in names:
                    stored |= encode_tensor(name, file.get_tensor(name), codec)
        digest, size = write_shard(self._store, [_piece(n, t) for n, t in stored.items()], {"codec": codec})
        return EncodedRef(source=source, codec=codec, digest=digest, size=size, packed=self._pack(digest))

    def difference(self, old: EncodedRef, new: EncodedRef) -> PatchMade | None:
        """The step from one shard to the next, if their layout is one and the step is smaller than the new shard."""
        try:
            with self._store.localised(old.digest) as before, self._store.localised(new.digest) as after:
                digest, size = write_chunks(self._store, lossless.difference(before, after))
        except (PackedError, BlobMissing, BlobDamaged):  # without the old shard there is no step from it
            return None
        if size >= new.packed.size:
            return None
        return PatchMade(kind="difference", target=new.digest, base=old.digest, digest=digest, size=size)

    def _pack(self, blob: str) -> BlobRef:
        with self._store.localised(blob) as path:
            digest, size = write_chunks(self._store, lossless.pack(path))
        return BlobRef(digest=digest, size=size)

    def _skeleton(self) -> nn.Module:
        if self._model is None:
            assert self._config is not None, "a pruned codec needs the model's configuration"
            with self._store.open(self._config.digest) as config:
                self._model = skeleton(json.load(config), self._task)
        return self._model


def encode(store: EngineStore, payload: EncodePayload) -> EncodeResult:
    """Blocks one after another, each in the codec that it is wanted in."""
    encoder = ShardEncoder(store, payload.config, payload.task)
    return EncodeResult(shards=[encoder.encode(ref.digest, ref.codec) for ref in payload.wanted])


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _piece(name: str, tensor: torch.Tensor) -> Piece:
    return from_tensor(name, tensor.shape, tensor.dtype, partial(_same, tensor))
