"""A shard is had the cheapest way, and two agents with the same cache choose the same one."""

from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent.fetching import Recipe, cheapest
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import BlobRef, PatchRef, ShardRef


def d(name: str) -> str:
    return digest_of(name.encode())


def patch(digest: str, base: str, size: int, **more: Any) -> PatchRef:
    return PatchRef(kind="difference", digest=d(digest), base=d(base), size=size, **more)


def ref(*patches: PatchRef, size: int = 100, packed: int | None = 80) -> ShardRef:
    held = None if packed is None else BlobRef(digest=d("packed"), size=packed)
    return ShardRef(block="layers.0", version=3, codec="int8", digest=d("v3"), size=size, packed=held, patches=list(patches))


CHAIN = (patch("2-3", "v2", 20), patch("1-2", "v1", 20), patch("0-1", "v0", 20))


def choose(shard: ShardRef, *cached: str) -> Recipe:
    return cheapest(shard, {d(name) for name in cached}.__contains__)


def fetched(way: Recipe, *cached: str) -> list[str]:
    """What crosses the wire, in the order in which it is fetched."""
    names = {d(name): name for name in ("v0", "v1", "v2", "v3", "packed", "2-3", "1-2", "0-1", "other")}
    return [names[blob.digest] for blob in way.blobs if blob.digest not in {d(name) for name in cached}]


@pytest.mark.parametrize(
    ("shard", "cached", "expected"),
    [
        (ref(*CHAIN), ["v3", "v2"], []),
        (ref(), [], ["packed"]),
        (ref(packed=None), [], ["v3"]),
        (ref(packed=120), [], ["v3"]),  # random bytes grow by packing
        (ref(*CHAIN), [], ["packed"]),
        (ref(*CHAIN), ["v2"], ["2-3"]),
        (ref(*CHAIN), ["v1"], ["1-2", "2-3"]),
        (ref(*CHAIN), ["v0"], ["0-1", "1-2", "2-3"]),
        (ref(*CHAIN), ["v0", "v1", "v2"], ["2-3"]),
        (ref(*CHAIN), ["v0", "1-2", "0-1"], ["2-3"]),  # patches that were fetched for a visit that came to nothing
        (ref(patch("2-3", "v2", 79)), ["v2"], ["2-3"]),
        (ref(patch("2-3", "v2", 81)), ["v2"], ["packed"]),
        (ref(patch("2-3", "v2", 81)), ["v2", "2-3"], []),  # its own delta, say
        (ref(patch("2-3", "v2", 30)), ["packed", "v2"], []),
        (ref(patch("2-3", "other", 1)), ["v2"], ["packed"]),
    ],
)
def test_the_fewest_bytes(shard: ShardRef, cached: list[str], expected: list[str]) -> None:
    assert fetched(choose(shard, *cached), *cached) == expected


def test_ties_are_for_what_takes_the_least_work() -> None:
    assert fetched(choose(ref(size=80, packed=80))) == ["v3"], "nothing to unpack"
    assert fetched(choose(ref(patch("2-3", "v2", 80)), "v2"), "v2") == ["packed"]


def test_a_way_says_what_is_made_of_what() -> None:
    steps = (CHAIN[0].model_copy(update={"kind": "delta", "weight": 0.5}), CHAIN[1])
    local = choose(ref(*steps), "v1").local(lambda digest: Path("cache") / digest)
    assert (local.digest, local.path, local.size, local.packed) == (d("v3"), f"cache/{d('v3')}", 100, None)
    assert local.base == f"cache/{d('v1')}"
    assert [(p.kind, p.path, p.digest, p.target, p.weight) for p in local.patches] == [
        ("difference", f"cache/{d('1-2')}", d("v2"), f"cache/{d('v2')}", 1.0),
        ("delta", f"cache/{d('2-3')}", d("v3"), f"cache/{d('v3')}", 0.5),
    ]
    packed = choose(ref(), "nothing").local(Path)
    assert (packed.packed, packed.base, packed.patches) == (d("packed"), None, [])
    raw = choose(ref(packed=None), "nothing").local(Path)
    assert (raw.packed, raw.base, raw.patches) == (None, None, [])
