"""A block in a codec while it is made: its tensors come some rows at a time; then it is stored, plain and packed, with the step from an older one."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from fedcybgd.coordinator.domain.jobs.payloads import EncodedRef, PatchMade
from fedcybgd.coordinator.engine.planes import BY_NUMPY
from fedcybgd.coordinator.engine.shards import as_bytes, write_chunks
from fedcybgd.coordinator.engine.threads import at_once
from fedcybgd.coordinator.storage import BlobDamaged, BlobMissing, EngineStore
from fedcybgd.shared.contract.manifests import BlobRef
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.files.safetensors_header import pack_header, parse_header
from fedcybgd.shared.tensors.codecs import bits_of, encode_rows, encoded_names
from fedcybgd.shared.tensors.dtypes import DTYPE_NAMES
from fedcybgd.shared.tensors.quantized import GROUP

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor of a block"""


class Encoding:
    """What a shard stores of a block in `int8` or `int4`. Rows come in any order, and from several threads."""

    def __init__(self, codec: str, tensors: Shapes) -> None:
        """Raises `CodecError` for a tensor that the codec cannot store."""
        self.codec = codec
        self._bits = {name: bits_of(name, shape, dtype, codec) for name, (dtype, shape) in tensors.items()}
        self._stored: dict[str, Tensor] = {}
        for name in sorted(tensors):  # whatever the order in which the block has them
            self._stored |= _places(name, *tensors[name], self._bits[name])

    def put(self, name: str, rows: slice | None, values: Tensor) -> None:
        """Some rows of a tensor, or all of it. Raises `CodecError` for values that are not finite."""
        bits = self._bits[name]
        for part, found in ({name: values} if bits is None else encode_rows(name, values, bits)).items():
            (self._stored[part] if rows is None else self._stored[part][rows]).copy_(found)

    def keep(self, store: EngineStore, source: str, old: EncodedRef | None = None) -> tuple[EncodedRef, PatchMade | None]:
        """Store it; with the step from `old` to it, where their layout is one and the step is smaller than the new shard."""
        return keep(store, source, self.codec, self._stored, old)


def keep(
    store: EngineStore, source: str, codec: str, stored: Mapping[str, Tensor], old: EncodedRef | None = None
) -> tuple[EncodedRef, PatchMade | None]:
    """As `Encoding.keep`, of what is to be stored; all of it is read from memory, and the three files are written at once."""
    head = pack_header([(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in stored.items()], {"codec": codec})
    header = parse_header(head[8:])

    def plain() -> tuple[str, int]:
        return write_chunks(store, _chunks(head, stored))

    def packed() -> tuple[str, int]:
        return write_chunks(store, lossless.pack_read(header, _Reader(_chunks(head, stored)), BY_NUMPY))

    def step() -> tuple[str, int]:
        if old is not None:
            with (
                suppress(PackedError, BlobMissing, BlobDamaged),
                store.localised(old.digest) as path,
            ):  # without the old shard there is none
                return write_chunks(store, lossless.difference_read(path, head, header, _Reader(_chunks(head, stored)), BY_NUMPY))
        return "", 0

    (digest, size), (packed_digest, packed_size), (difference, bytes_of_it) = at_once([plain, packed, step])
    made = EncodedRef(source=source, codec=codec, digest=digest, size=size, packed=BlobRef(digest=packed_digest, size=packed_size))
    if old is None or not difference or bytes_of_it >= packed_size:
        return made, None
    return made, PatchMade(kind="difference", target=digest, base=old.digest, digest=difference, size=bytes_of_it)


def _places(name: str, dtype: torch.dtype, shape: tuple[int, ...], bits: int | None) -> dict[str, Tensor]:
    if bits is None:
        return {name: torch.empty(shape, dtype=dtype)}
    codes, scales, offsets = encoded_names(name)
    *outer, last = shape
    found = {codes: torch.empty((*outer, last if bits == 8 else last // 2), dtype=torch.int8 if bits == 8 else torch.uint8)}
    for part in (scales, offsets) if bits == 4 else (scales,):
        found[part] = torch.empty((*outer, math.ceil(last / GROUP)), dtype=torch.bfloat16)
    return found


def _chunks(head: bytes, stored: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in stored.values():
        data = as_bytes(tensor)
        for start in range(0, len(data), lossless.CHUNK):
            yield data[start : start + lossless.CHUNK]


class _Reader:
    """Chunks, to be read in other pieces than those in which they come."""

    def __init__(self, chunks: Iterator[memoryview]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")

    def read(self, n: int, /) -> bytes:
        found = bytearray()
        while len(found) < n:
            if not self._left and (chunk := next(self._chunks, None)) is not None:
                self._left = chunk
            elif not self._left:
                break
            taken = self._left[: n - len(found)]
            found += taken
            self._left = self._left[len(taken) :]
        return bytes(found)
