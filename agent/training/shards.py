"""Makes shards out of what was fetched: unpacked, or patched from an older one; verified before anything reads them."""

import math
import os
from pathlib import Path

import torch
from safetensors import safe_open

from fedcybgd.agent.messages import LocalPatch, LocalShard
from fedcybgd.shared.contract.delta_rows import most_of_delta
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import DTYPE_BITS, copy_tensor, pack_header, read_header
from fedcybgd.shared.files.verified import Verifier
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices, some_rows
from fedcybgd.shared.tensors.deltas import add_decoded

VERIFIER = Verifier()
"""Of this process: what it has hashed once is not hashed again at every visit."""


class ShardCorrupt(FedError):
    """What was fetched does not make the shard that the manifest names; nothing of it is kept."""

    code = "shard_corrupt"


def materialise(shard: LocalShard) -> None:
    """See to it that the file of a shard is there and has its digest. Raises `ShardCorrupt` or `PackedError`."""
    path = Path(shard.path)
    if _is_there(path, shard.digest):
        return
    if shard.packed is not None:
        lossless.unpack(Path(shard.packed), path, shard.size)
        _verify(path, shard.digest)
        return
    base = shard.base
    if base is None:
        raise ShardCorrupt(f"{shard.block}: its shard is not there, nor what it can be made of")
    for patch in shard.patches:
        _step(Path(base), patch, shard.size)
        base = patch.target
    if Path(base) != path:
        raise ShardCorrupt(f"{shard.block}: the patches lead to another shard")


def _step(base: Path, patch: LocalPatch, size: int) -> None:
    """`size` is that of the last shard: none on the way to it is larger."""
    target = Path(patch.target)
    if _is_there(target, patch.digest):
        return
    if patch.kind == "difference":
        lossless.apply_difference(base, Path(patch.path), target, min(base.stat().st_size, size))
    else:
        _add_delta(base, Path(patch.path), patch.weight, target, size)
    _verify(target, patch.digest)


def _add_delta(base: Path, delta: Path, weight: float, target: Path, size: int) -> None:
    """Add an accepted delta to an exact shard, byte for byte as the coordinator did."""
    plain, aside = delta.with_name(delta.name + ".unpacked"), target.with_name(target.name + ".part")
    try:
        if lossless.is_packed(delta):
            lossless.unpack(delta, plain, most_of_delta(size))
        header, change = read_header(base), DeltaFile(plain if plain.exists() else delta)
        layout = [(n, "F32" if n in change.names else t.dtype, t.shape) for n, t in header.tensors.items()]
        head = pack_header(layout)
        if len(head) + sum(math.prod(shape) * DTYPE_BITS[dtype] // 8 for _, dtype, shape in layout) > size:
            raise ShardCorrupt(f"a delta makes more than the {size} bytes of the shard that it leads to")
        with aside.open("wb") as file, base.open("rb") as old:
            file.write(head)
            for name, tensor in header.tensors.items():
                if name not in change.names:
                    file.writelines(copy_tensor(old, header, name))
                    continue
                for rows in row_slices(tensor.shape):
                    file.write(_sum(base, name, rows, change.tensor(name, tensor.shape, rows), weight))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        plain.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)


def _sum(base: Path, name: str, rows: slice | None, difference: torch.Tensor, weight: float) -> memoryview:
    with safe_open(base, framework="pt") as file:
        total = add_decoded(some_rows(file, name, rows).to(torch.float32), [(difference, weight)])
    data: memoryview = total.contiguous().flatten().view(torch.uint8).numpy().data
    return data


def _is_there(path: Path, digest: str) -> bool:
    """Whether the file is there and whole; a damaged one is thrown away."""
    try:
        whole = VERIFIER.is_whole(path, digest)
    except FileNotFoundError:
        return False
    if not whole:
        path.unlink(missing_ok=True)
    return whole


def _verify(path: Path, digest: str) -> None:
    if digest_of_file(path) != digest:
        path.unlink()
        raise ShardCorrupt(f"shard {digest[:12]} did not come out right and was thrown away")
