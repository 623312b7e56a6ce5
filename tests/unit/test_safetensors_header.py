"""Headers are read and written as the safetensors library does, and whatever is wrong with a file is found before it is used."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files.safetensors_header import (
    ALIGNMENT,
    DTYPE_BITS,
    MAX_HEADER,
    Header,
    copy_tensor,
    pack_header,
    parse_header,
    read_header,
    tensor_nbytes,
)

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "bf16": torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 5, dtype=torch.float16),
    "flags": torch.tensor([True, False]),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, {"format": "pt"})
    return path


def write(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_file_of_the_library_is_read(saved: Path) -> None:
    header = read_header(saved)
    assert {name: t.shape for name, t in header.tensors.items()} == {name: tuple(t.shape) for name, t in TENSORS.items()}
    assert {name: t.nbytes for name, t in header.tensors.items()} == {name: t.nbytes for name, t in TENSORS.items()}
    assert {name: t.numel for name, t in header.tensors.items()} == {name: t.numel() for name, t in TENSORS.items()}
    assert header.metadata == {"format": "pt"}
    assert header.file_size == saved.stat().st_size


def test_bytes_copied_tensor_by_tensor_make_a_file_that_the_library_reads(saved: Path, tmp_path: Path) -> None:
    header = read_header(saved)
    copy = tmp_path / "copy.safetensors"
    names = sorted(header.tensors)
    with saved.open("rb") as source, copy.open("wb") as target:
        target.write(pack_header([(n, header.tensors[n].dtype, header.tensors[n].shape) for n in names], {"format": "pt"}))
        for name in names:
            for chunk in copy_tensor(source, header, name):
                target.write(chunk)
    again = load_file(copy)
    assert set(again) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
    assert list(read_header(copy).tensors) == names
    assert read_header(copy).metadata == {"format": "pt"}


names = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
of_whole_bytes = st.tuples(names, st.sampled_from(sorted(DTYPE_BITS)), shapes).filter(lambda t: math.prod(t[2]) * DTYPE_BITS[t[1]] % 8 == 0)
tensor_lists = st.lists(of_whole_bytes, max_size=6, unique_by=lambda t: t[0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tensor_lists, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_what_is_packed_is_parsed_again_and_the_data_begin_at_64(
    tmp_path: Path, tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    packed = pack_header(tensors, metadata)
    header = parse_header(packed[8:])
    assert int.from_bytes(packed[:8], "little") == len(packed) - 8
    assert len(packed) % ALIGNMENT == 0
    assert header.data_start == len(packed)
    assert [(t.name, t.dtype, t.shape) for t in header.tensors.values()] == tensors
    assert header.metadata == metadata
    path = tmp_path / "packed.safetensors"
    path.write_bytes(packed + bytes(header.file_size - header.data_start))
    assert read_header(path) == header
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {name for name, _, _ in tensors}


def test_every_cut_of_a_file_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(HeaderError) as refused:
            read_header(saved)
        assert refused.value.code == "safetensors_invalid"
        assert "model.safetensors" in refused.value.message


def test_bytes_that_nobody_asked_for_are_found(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(HeaderError, match="its header asks for"):
        read_header(saved)


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_a_huge_header_length_costs_no_memory(tmp_path: Path, length: int) -> None:
    with pytest.raises(HeaderError, match="cut short"):
        read_header(write(tmp_path, {}, length=length))


def test_a_header_longer_than_the_format_allows_is_refused_though_the_file_has_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)  # sparse: takes no disk
    with pytest.raises(HeaderError, match=f"header of {MAX_HEADER + 1} bytes"):
        read_header(path)


F32 = entry("F32", [2], 0, 8)
WRONG: dict[str, tuple[Any, str]] = {
    "gap": ({"a": F32, "b": entry("F32", [1], 12, 16)}, "tensor b starts at byte 12 where 8"),
    "gap at the start": ({"a": entry("F32", [2], 8, 16)}, "starts at byte 8 where 0"),
    "overlap": ({"a": F32, "b": entry("F32", [2], 4, 12)}, "tensor b starts at byte 4 where 8"),
    "the same bytes twice": ({"a": F32, "b": F32}, "starts at byte 0 where 8"),
    "empty tensor inside another": ({"a": F32, "b": entry("F32", [0], 4, 4)}, "starts at byte"),
    "too few bytes": ({"a": entry("F32", [2], 0, 4)}, "has 4 bytes where F32 \\[2\\] needs 8"),
    "too many bytes": ({"a": entry("F16", [2], 0, 8)}, "has 8 bytes where F16 \\[2\\] needs 4"),
    "end before begin": ({"a": entry("F32", [2], 8, 0)}, "has -8 bytes"),
    "negative offset": ({"a": entry("F32", [2], -8, 0)}, "malformed"),
    "negative shape": ({"a": entry("F32", [-2], 0, -8)}, "malformed"),
    "two negative sizes": ({"a": entry("F32", [-1, -2], 0, 8)}, "malformed"),
    "fractional shape": ({"a": entry("F32", [2.0], 0, 8)}, "malformed"),
    "boolean shape": ({"a": entry("F32", [True, 2], 0, 8)}, "malformed"),
    "boolean offsets": ({"a": entry("U8", [1], False, True)}, "malformed"),
    "shape beyond 64 bits": ({"a": entry("F32", [0, 2**70], 0, 0)}, "malformed"),
    "product beyond 64 bits": ({"a": entry("F32", [2**40, 2**40, 0], 0, 0)}, "malformed"),
    "unknown dtype": ({"a": entry("F12", [2], 0, 3)}, "unknown dtype 'F12'; known are BF16"),
    "three offsets": ({"a": {**F32, "data_offsets": [0, 8, 8]}}, "malformed"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "malformed"),
    "more than it should say": ({"a": {**F32, "code": "x"}}, "malformed"),
    "entry of a wrong type": ({"a": [1, 2]}, "entry of tensor a is malformed"),
    "a list": ([F32], "no JSON object"),
    "null": (b"null", "no JSON object"),
    "no JSON": (b"{'a': 1}", "no JSON"),
    "NaN": (b'{"a":NaN}', "no JSON"),
    "infinity": (b'{"a":1e999}', "no JSON"),
    "brackets": (b'{"a":' + b"[" * 100_000, "no JSON"),
    "UTF-16": (json.dumps({"a": F32}).encode("utf-16"), "no JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps({"a": F32}).encode(), "no JSON"),
    "half a surrogate pair": (b'{"\\ud800":' + json.dumps(F32).encode() + b"}", "no JSON"),
    "a name twice": (b'{"a":%b,"a":%b}' % ((json.dumps(F32).encode(),) * 2), "no JSON"),
    "metadata of a wrong type": ({"__metadata__": ["a"], "a": F32}, "__metadata__ must map"),
    "metadata with a number": ({"__metadata__": {"a": 1}, "a": F32}, "__metadata__ must map"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_is_refused(tmp_path: Path, name: str) -> None:
    header, says = WRONG[name]
    with pytest.raises(HeaderError, match=says):
        read_header(write(tmp_path, header, bytes(8)))


def mutated(draw: st.DrawFn) -> bytes:
    raw = bytearray(pack_header([("a", "F32", (2,)), ("b", "I8", (3, 1))], {"k": "v"})[8:])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(raw) - 1))
        raw[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2) | st.sampled_from([b'"', b"0", b"-", b",", b"}", b"["]))
    return bytes(raw)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.composite(mutated)())
def test_what_is_accepted_here_can_be_opened_there(tmp_path: Path, raw: bytes) -> None:
    path = write(tmp_path, raw, bytes(11))
    try:
        header: Header = read_header(path)
    except HeaderError:
        return
    try:
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(header.tensors)
    except SafetensorError as error:
        raise AssertionError(f"accepted {raw!r}, which the library refuses: {error}") from error


def test_a_file_that_shrinks_while_it_is_copied_is_noticed(saved: Path) -> None:
    header = read_header(saved)
    short = io.BytesIO(saved.read_bytes()[: header.data_start + 10])
    last = max(header.tensors.values(), key=lambda t: t.end)
    with pytest.raises(HeaderError, match="before the end of tensor"):
        b"".join(copy_tensor(short, header, last.name))


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F32", (2, 3), 24), ("BF16", (), 2), ("BOOL", (5,), 5), ("F64", (0, 9), 0)])
def test_sizes_in_bytes(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert tensor_nbytes(dtype, shape) == size
