"""Makes a block's shard in a codec, and both in the lossless coding: once for each (block version, codec)."""

import json

from safetensors import safe_open
from torch import nn

from fedcybgd.coordinator.domain.jobs.payloads import EncodedRef, EncodePayload, EncodeResult, PatchMade
from fedcybgd.coordinator.engine.encoding import Encoding, keep
from fedcybgd.coordinator.engine.planes import BY_NUMPY
from fedcybgd.coordinator.engine.shards import write_chunks
from fedcybgd.coordinator.engine.threads import ahead, in_order
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.codec import EXACT, PRUNED
from fedcybgd.shared.contract.manifests import BlobRef, FileRef
from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.models.assembly import skeleton
from fedcybgd.shared.models.pruning import prune_block
from fedcybgd.shared.tensors.codecs import parse_codec
from fedcybgd.shared.tensors.delta_file import row_slices, some_rows
from fedcybgd.shared.tensors.dtypes import DTYPES


class ShardEncoder:
    """Encodes blocks of one model; its skeleton is made when the first block is to be pruned."""

    def __init__(self, store: EngineStore, config: FileRef | None, task: Task | None) -> None:
        self._store, self._config, self._task = store, config, task
        self._model: nn.Module | None = None

    def encode(self, source: str, codec: str) -> EncodedRef:
        """The block whose exact shard is `source`. Memory holds all that is stored of it, and some rows of tensors.

        The same source and codec give the same bytes in every process. Raises `CodecError`, also for values that are not finite.
        """
        return self.stepped(source, codec, None)[0]

    def stepped(self, source: str, codec: str, old: EncodedRef | None) -> tuple[EncodedRef, PatchMade | None]:
        """With the step to it from the shard of an older version, if their layout is one and the step is smaller than the new shard."""
        if codec == EXACT:
            return EncodedRef(source=source, codec=codec, digest=source, size=self._store.size(source), packed=self._pack(source)), None
        kind, percent = parse_codec(codec)
        with self._store.localised(source) as path, safe_open(path, framework="pt") as file:
            if kind == PRUNED:
                stored = prune_block(self._skeleton(), {n: file.get_tensor(n) for n in file.keys()}, percent)  # noqa: SIM118 - not a dict
                return keep(self._store, source, codec, stored, old)
            tensors = read_header(path).tensors
            encoding = Encoding(codec, {name: (DTYPES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()})

            def put(part: tuple[str, slice | None]) -> None:
                encoding.put(*part, some_rows(file, *part))

            for _ in in_order(put, ((name, rows) for name, tensor in tensors.items() for rows in row_slices(tensor.shape))):
                pass
        return encoding.keep(self._store, source, old)

    def _pack(self, blob: str) -> BlobRef:
        with self._store.localised(blob) as path, path.open("rb") as file:
            digest, size = write_chunks(self._store, ahead(lossless.pack_read(read_header(path), file, BY_NUMPY)))
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
