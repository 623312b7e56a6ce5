"""Packing loses nothing, patches are small, and hostile or damaged bytes leave nothing behind."""

import io
import itertools
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedcybgd.coordinator.engine.planes import BY_NUMPY
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files import byte_planes, lossless
from fedcybgd.shared.files.lossless import (
    MAGIC,
    PATCH_MAGIC,
    PackedError,
    apply_difference,
    difference,
    is_packed,
    leap,
    pack,
    unpack,
    unpack_some,
)
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.tensors.codecs import encode_tensor

LIMIT = 1 << 30


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path, {"codec": "exact"})
    return path


def written(path: Path, chunks: Iterator[bytes]) -> Path:
    path.write_bytes(b"".join(chunks))
    return path


MIXED = {
    "f32": normal(100, 77), "bf16": normal(300, 200, seed=1).to(torch.bfloat16), "i8": torch.arange(-100, 100, dtype=torch.int8),
    "f64": normal(5, seed=2).double(), "bool": torch.tensor([True, False, True]), "scalar": torch.tensor(3), "empty": torch.zeros(0, 4),
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "shard", MIXED)


@pytest.fixture
def packed(tmp_path: Path, source: Path) -> Path:
    return written(tmp_path / "packed", pack(source))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Tensors of several chunks each, with neighbours in one chunk."""
    return saved(
        tmp_path / "large", {"a": normal(700, 700), "b": normal(600, 600, seed=1), "b::scales": normal(600), "c": normal(500_000, seed=2)}
    )


@pytest.mark.parametrize("names", [{"a"}, {"b"}, {"a", "c"}, set(), {"a", "b", "c"}, {"z"}])
def test_of_some_tensors_the_rest_is_stepped_over(tmp_path: Path, large: Path, names: set[str]) -> None:
    packed = written(tmp_path / "packed", pack(large))
    unpack_some(packed, tmp_path / "some", large.stat().st_size, names)
    unpack(packed, tmp_path / "all", large.stat().st_size)
    some, whole, header = (tmp_path / "some").read_bytes(), (tmp_path / "all").read_bytes(), read_header(large)
    assert len(some) == len(whole)
    assert some[: header.data_start] == whole[: header.data_start]
    for name, info in header.tensors.items():
        begin, end = header.data_start + info.begin, header.data_start + info.end
        if name.partition("::")[0] in names:
            assert some[begin:end] == whole[begin:end]
        elif info.nbytes > 3 * lossless.CHUNK // 2 and not names & {"b", "c"}:
            assert not any(some[begin + lossless.CHUNK : end]), "a hole"


def test_of_some_tensors_what_is_malformed_leaves_nothing_behind(tmp_path: Path, large: Path) -> None:
    data = b"".join(pack(large))
    for name, broken in {
        "cut": data[:-3],
        "longer": data + b"x",
        "within": data[: len(data) // 2],
        "short": data[:20],
        "other": b"X" + data,
    }.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises((PackedError, HeaderError)):
            unpack_some(tmp_path / name, tmp_path / "out", LIMIT, {"a"})
    (tmp_path / "packed").write_bytes(data)
    with pytest.raises(PackedError, match="more than"):
        unpack_some(tmp_path / "packed", tmp_path / "out", large.stat().st_size - 1, {"a"})
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def test_round_trip(tmp_path: Path, source: Path, packed: Path) -> None:
    unpack(packed, tmp_path / "out", source.stat().st_size)
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert packed.stat().st_size < source.stat().st_size
    assert is_packed(packed)
    assert not is_packed(source)
    assert b"".join(pack(source)) == packed.read_bytes()


def test_files_of_many_chunks_come_back(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes that do not become smaller are stored without a try for some chunks, and then tried again."""
    monkeypatch.setattr(lossless, "CHUNK", 256)
    new = saved(tmp_path / "new", {n: t if t.dtype == torch.bool else t + 1 for n, t in MIXED.items()})
    unpack(written(tmp_path / "packed", pack(source)), tmp_path / "out", LIMIT)
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    apply_difference(source, written(tmp_path / "patch", difference(source, new)), tmp_path / "out", LIMIT)
    assert (tmp_path / "out").read_bytes() == new.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.int64]), st.integers(0, 300)), max_size=5))
def test_any_file_comes_back(tmp_path: Path, kinds: list[tuple[torch.dtype, int]]) -> None:
    tensors = {str(i): (normal(n, seed=i) * 50).to(dtype) for i, (dtype, n) in enumerate(kinds)}
    source = saved(tmp_path / "shard", tensors)
    unpack(written(tmp_path / "packed", pack(source)), tmp_path / "out", LIMIT)
    assert (tmp_path / "out").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_leap_is_the_difference_from_where_its_steps_begin(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lossless, "CHUNK", 256)

    def moved(tensor: torch.Tensor, by: int) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(by))
        return tensor if tensor.dtype == torch.bool else (tensor + by * noise).to(tensor.dtype)

    files = [saved(tmp_path / f"v{v}", {name: moved(tensor, v) for name, tensor in MIXED.items()}) for v in range(steps + 1)]
    patches = [written(tmp_path / f"p{v}", difference(*pair)) for v, pair in enumerate(itertools.pairwise(files))]
    header, expected = read_header(files[0]), b"".join(difference(files[0], files[-1]))
    for file in files:
        file.unlink()
    assert b"".join(leap(patches, header)) == b"".join(leap(patches, header, BY_NUMPY)) == expected
    with pytest.raises(PackedError):
        list(leap([*patches, written(tmp_path / "other", pack(saved(tmp_path / "short", {"a": normal(3)})))], header))


def test_bytes_of_bf16_weights_become_fewer(tmp_path: Path) -> None:
    source = saved(tmp_path / "s", {"w": (normal(256, 512) * 0.04).to(torch.bfloat16)})
    assert len(b"".join(pack(source))) < 0.72 * source.stat().st_size


def test_what_cannot_be_packed_is_stored(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (100_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = saved(tmp_path / "s", {"noise": noise})
    assert len(b"".join(pack(source))) < source.stat().st_size + 200


def test_only_safetensors_files_are_packed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"something else")
    with pytest.raises(HeaderError):
        list(pack(tmp_path / "x"))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_a_patch_is_clearly_smaller_than_the_packed_shard(tmp_path: Path, codec: str) -> None:
    weight = normal(256, 512) * 0.04
    moved = weight + normal(256, 512, seed=1) * 0.0004
    old = saved(tmp_path / "old", encode_tensor("w", weight, codec))
    new = saved(tmp_path / "new", encode_tensor("w", moved, codec))
    patch = written(tmp_path / "patch", difference(old, new))
    assert patch.stat().st_size < 0.4 * len(b"".join(pack(new)))
    apply_difference(old, patch, tmp_path / "out", LIMIT)
    assert (tmp_path / "out").read_bytes() == new.read_bytes()
    assert not is_packed(patch)
    with pytest.raises(PackedError, match="not packed"):
        unpack(patch, tmp_path / "out2", LIMIT)


def test_a_patch_asks_for_its_base(tmp_path: Path) -> None:
    old, new = saved(tmp_path / "old", {"w": normal(40, 40)}), saved(tmp_path / "new", {"w": normal(40, 40, seed=1)})
    patch = written(tmp_path / "patch", difference(old, new))
    bases = {
        "another": saved(tmp_path / "another", {"w": normal(40, 40, seed=2)}),
        "shorter": saved(tmp_path / "shorter", {"w": normal(40, 30)}),
        "longer": saved(tmp_path / "longer", {"w": normal(40, 50)}),
    }
    for base in bases.values():
        with pytest.raises(PackedError):
            apply_difference(base, patch, tmp_path / "out", LIMIT)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["old", "new", "patch", *bases])


@pytest.mark.parametrize("other", [{"w": normal(40, 41)}, {"v": normal(40, 40)}, {"w": normal(40, 40).half()}])
def test_files_of_unlike_headers_have_no_patch(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    old, new = saved(tmp_path / "old", {"w": normal(40, 40)}), saved(tmp_path / "new", other)
    with pytest.raises(PackedError, match="same header"):
        b"".join(lossless.difference(old, new))


@given(st.binary(min_size=1, max_size=300), st.randoms())
def test_bytes_are_subtracted_without_carries(new: bytes, random: object) -> None:
    old = bytes(random.randrange(256) for _ in new)  # type: ignore[attr-defined]
    patch = byte_planes.subtract(new, old)
    assert patch == bytes((a - b) % 256 for a, b in zip(new, old, strict=True))
    assert byte_planes.add(patch, old) == new


def test_long_rows_of_bytes_are_subtracted_piece_by_piece() -> None:
    new, old = bytes(range(256)) * 1000, bytes(range(255, -1, -1)) * 1000
    assert byte_planes.subtract(new, old) == bytes((a - b) % 256 for a, b in zip(new, old, strict=True))
    assert byte_planes.add(byte_planes.subtract(new, old), old) == new


def refused(folder: Path, data: bytes, message: str | None = None, limit: int = LIMIT) -> None:
    (folder / "bad").write_bytes(data)
    before = sorted(folder.iterdir())
    with pytest.raises(PackedError, match=message):
        unpack(folder / "bad", folder / "target", limit)
    assert sorted(folder.iterdir()) == before, "something was left behind"


def container(*chunks: bytes, total: int = 0, crc: int = 0) -> bytes:
    return MAGIC + b"".join(chunks) + b"\0" + struct.pack("<QI", total, crc)


def chunk(length: int, *planes: bytes, width: int = 1) -> bytes:
    return struct.pack("<BI", width, length) + b"".join(planes)


def plane(held: bytes, how: int = lossless.ZSTD, length: int | None = None) -> bytes:
    return struct.pack("<BI", how, len(held) if length is None else length) + held


def test_the_smallest_container_and_a_hand_made_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(container())
    unpack(tmp_path / "a", tmp_path / "out", 0)
    assert (tmp_path / "out").read_bytes() == b""
    (tmp_path / "b").write_bytes(container(chunk(4, plane(b"ac", 0), plane(b"bd", 0), width=2), total=4, crc=zlib.crc32(b"abcd")))
    unpack(tmp_path / "b", tmp_path / "out", 4)
    assert (tmp_path / "out").read_bytes() == b"abcd"


def test_every_truncation_is_refused(tmp_path: Path, packed: Path) -> None:
    data = packed.read_bytes()
    for end in [*range(0, 60), *range(60, len(data), 5003), *range(len(data) - 20, len(data))]:
        refused(tmp_path, data[:end])


def test_damage_is_found(tmp_path: Path, packed: Path) -> None:
    data = packed.read_bytes()
    for i in [*range(0, 60), *range(60, len(data), 5003), *range(len(data) - 14, len(data))]:
        refused(tmp_path, data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1 :])


def test_bytes_after_the_end_are_refused(tmp_path: Path, packed: Path) -> None:
    refused(tmp_path, packed.read_bytes() + b"\0", "after the end")


def test_what_is_not_packed_is_refused(tmp_path: Path, source: Path, packed: Path) -> None:
    refused(tmp_path, b"", "not packed")
    refused(tmp_path, source.read_bytes(), "not packed")
    refused(tmp_path, PATCH_MAGIC + packed.read_bytes()[8:], "not packed")


def test_the_limit_holds_in_all(tmp_path: Path, source: Path, packed: Path) -> None:
    refused(tmp_path, packed.read_bytes(), "more than", source.stat().st_size - 1)


def test_bombs_are_refused_before_they_grow(tmp_path: Path) -> None:
    zeros = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    nameless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26))
    tracemalloc.start()
    try:
        refused(tmp_path, container(chunk(1 << 26, plane(zeros))), "a chunk claims")
        refused(tmp_path, container(chunk(lossless.CHUNK + 1, plane(zeros))), "a chunk claims")
        refused(tmp_path, container(chunk(10_000, plane(zeros))), "another length")
        refused(tmp_path, container(chunk(10_000, plane(nameless))), "another length")
        refused(tmp_path, container(chunk(10_000, plane(b"", 0, 2**32 - 1))), "claims to be held")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    """The frame header says 20,000, the blocks hold 60,000."""
    honest = zstandard.ZstdCompressor().compress(bytes(60_000))
    liar = honest[:5] + struct.pack("<H", 20_000 - 256) + honest[7:]
    assert zstandard.get_frame_parameters(liar).content_size == 20_000
    refused(tmp_path, container(chunk(20_000, plane(liar))), "damaged|shorter")


MALFORMED = [
    (container(chunk(0, plane(b"", 0))), "a chunk claims 0"),
    (container(chunk(3, plane(b"a", 0), plane(b"b", 0), width=2)), "a chunk claims 3"),
    (container(chunk(9, *[plane(b"aaa", 0)] * 3, width=3)), "values of 3"),
    (container(chunk(2, plane(b"ab", 2))), "claims to be held"),
    (container(chunk(2, plane(b"abc", 0))), "claims to be held"),
    (container(chunk(50, plane(b"no frame", 1))), "damaged"),
    (container(chunk(2, plane(b"ab", 0)), total=3, crc=zlib.crc32(b"ab")), "check sum"),
    (container(chunk(5000, plane(zstandard.compress(bytes(5000)) + b"more")), total=5000), "damaged"),
    (container(chunk(2, plane(b"ab", 0)), total=2, crc=1), "check sum"),
]
WITHIN = 2
"""The last of them are wrong in what chunks hold, not in their lengths."""


@pytest.mark.parametrize(("data", "message"), MALFORMED)
def test_malformed_containers_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    refused(tmp_path, data, message)


def test_lengths_are_looked_at_without_unpacking(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", {"w": torch.randn(900, 700), "b": torch.zeros(5000), "n": torch.arange(9, dtype=torch.int8)})
    data, size = b"".join(pack(source)), source.stat().st_size

    def measured(packed: bytes, limit: int = size, chunks: int = 9) -> int:
        return lossless.unpacked_size(io.BytesIO(packed), limit, chunks)

    assert measured(data) == size
    count = sum(1 for _ in lossless.unpacked(io.BytesIO(data), size))
    assert measured(data, chunks=count) == size
    spoilt = [data[:at] for at in range(0, len(data), 9973)] + [data[:-1], data + b"x", data[:8] + data]
    for packed in (*spoilt, *(packed for packed, _ in MALFORMED[:-WITHIN])):
        with pytest.raises(PackedError):
            measured(packed)
    for limit, chunks in ((size - 1, 9), (size, count - 1)):
        with pytest.raises(PackedError, match="more than"):
            measured(data, limit, chunks)
    for packed, _ in MALFORMED[-WITHIN:]:
        assert measured(packed) > 0, "who unpacks it finds out"


def test_an_older_target_stays_when_unpacking_fails(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"older")
    (tmp_path / "bad").write_bytes(container(chunk(2, plane(b"ab", 0)), total=2, crc=1))
    with pytest.raises(PackedError):
        unpack(tmp_path / "bad", tmp_path / "target", LIMIT)
    assert (tmp_path / "target").read_bytes() == b"older"
    assert not (tmp_path / "target.part").exists()


def test_memory_is_bounded_both_ways(tmp_path: Path) -> None:
    old = saved(tmp_path / "old", {"w": torch.zeros(6_000_000, dtype=torch.float32)})
    new = saved(tmp_path / "new", {"w": torch.ones(6_000_000, dtype=torch.float32)})
    packed, patch = tmp_path / "packed", tmp_path / "patch"
    size = read_header(old).file_size
    tracemalloc.start()
    try:
        for path, chunks in ((packed, pack(new)), (patch, difference(old, new))):
            with path.open("wb") as file:
                for data in chunks:
                    file.write(data)
        unpack(packed, tmp_path / "out", size)
        apply_difference(old, patch, tmp_path / "out", size)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20, "less than the file, whatever other threads of the session hold"
    finally:
        tracemalloc.stop()
