"""Chooses how a shard is had for the fewest bytes: from the cache, by patches, packed, or as it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedcybgd.agent.messages import LocalPatch, LocalShard
from fedcybgd.shared.contract.delta_rows import most_of_delta
from fedcybgd.shared.contract.manifests import BlobRef, PatchRef, ShardRef


@dataclass(frozen=True)
class Recipe:
    """What has to be fetched for a shard, and what is done with it."""

    ref: ShardRef
    blobs: list[BlobRef] = field(default_factory=list)
    packed: bool = False
    base: str | None = None
    """digest of the shard that the patches start from"""
    steps: list[PatchRef] = field(default_factory=list)
    """in the order in which they are applied"""

    def takes(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of what is fetched, and of the shards between; a delta is unpacked beside them."""
        ref = self.ref
        yield from ((blob.digest, blob.size) for blob in self.blobs)
        if self.base:
            yield self.base, 0  # it is there already
        yield from ((step.base, ref.size) for step in self.steps[1:])
        if any(step.kind == "delta" for step in self.steps):
            yield f"{ref.digest}.unpacked", most_of_delta(ref.size)

    def local(self, path: Callable[[str], Path]) -> LocalShard:
        """The same with paths, for the training process; `path` tells where a digest is."""
        ref = self.ref
        targets = [*(step.base for step in self.steps[1:]), ref.digest]
        patches = [
            LocalPatch(kind=step.kind, path=str(path(step.digest)), weight=step.weight, digest=target, target=str(path(target)))
            for step, target in zip(self.steps, targets, strict=False)
        ]
        return LocalShard(
            block=ref.block, digest=ref.digest, codec=ref.codec, path=str(path(ref.digest)), size=ref.size,
            packed=str(path(ref.packed.digest)) if self.packed and ref.packed else None,
            base=str(path(self.base)) if self.base else None, patches=patches,
        )  # fmt: skip


def cheapest(ref: ShardRef, has: Callable[[str], bool]) -> Recipe:
    """The way that costs the fewest bytes, given what the cache has (by digest)."""
    if has(ref.digest):
        return Recipe(ref)
    ways = [Recipe(ref, [BlobRef(digest=ref.digest, size=ref.size)])]
    if ref.packed is not None:
        ways.append(Recipe(ref, [ref.packed], packed=True))
    for count, patch in enumerate(ref.patches, 1):
        if has(patch.base):
            steps = list(reversed(ref.patches[:count]))
            ways.append(Recipe(ref, list(steps), base=patch.base, steps=steps))
            break
    return min(ways, key=lambda way: sum(blob.size for blob in way.blobs if not has(blob.digest)))
