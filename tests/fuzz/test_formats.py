"""Files and messages that others write: whatever is in them, they are taken or refused by a stable code, in bounded time."""

import io
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save

from fedcybgd.agent.policy import load_policy
from fedcybgd.agent.residuals import Residuals
from fedcybgd.agent.settings import Home
from fedcybgd.coordinator.domain.admission import check_structure
from fedcybgd.coordinator.domain.run_file import parse_run_file
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import first_header, header_of, parse_header
from fedcybgd.shared.tensors.delta_file import DeltaFile

EXAMPLES = 8 * int(os.environ.get("FUZZ_EXAMPLES", "4"))
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=timedelta(seconds=10), derandomize="FUZZ_EXAMPLES" not in os.environ, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SHAPES = {"w": (7, 5), "b": (5,)}
PLAIN = save({name: torch.arange(float(torch.Size(shape).numel())).reshape(shape) for name, shape in SHAPES.items()})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=12,
)  # fmt: skip
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**40, 1e308, float("nan")])
RUN_FILE = (Path(__file__).parents[2] / "examples" / "banking77" / "run.yaml").read_text()
SAMPLE = (Path(__file__).parents[1] / "wire" / "samples" / "LeasedAssignment.json").read_text()


@st.composite
def spoilt(draw: Any, good: bytes) -> bytes:
    """A good file with a few bytes changed, left out or put in, or cut short."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["change", "drop", "insert", "cut"])):
            case "change" if data:
                data[at] = draw(st.integers(0, 255))
            case "drop":
                del data[at : at + draw(st.integers(1, 9))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def headers(draw: Any) -> bytes:
    """A header that says odd things in good JSON."""
    entry = st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E5M2", "no", ""]) | JSON,
        "shape": st.lists(st.integers(0, 9) | NUMBERS, max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 200) | NUMBERS, min_size=2, max_size=2) | JSON,
    })  # fmt: skip
    names = st.sampled_from(["w", "b", "__metadata__", "w::rows", "", "../x"])
    raw = json.dumps(draw(st.dictionaries(names, entry | JSON, max_size=4) | JSON)).encode()
    length = draw(st.just(len(raw)) | st.integers(0, 2**63))
    return length.to_bytes(8, "little") + raw + draw(st.binary(max_size=200))


def taken_or_refused(call: Callable[[], object], *also: type[Exception]) -> None:
    began = time.monotonic()
    refused: FedError | None = None
    try:
        call()
    except FedError as error:
        refused = error
    except also:
        pass
    assert refused is None or (refused.code and refused.message)
    assert time.monotonic() - began < 5


@SETTINGS
@given(spoilt(PLAIN) | headers() | st.binary(max_size=300))
def test_headers(data: bytes) -> None:
    taken_or_refused(lambda: header_of(io.BytesIO(data), "a file"))
    taken_or_refused(lambda: first_header(iter([data[:5], data[5:]]), "a file", size=len(data)))
    taken_or_refused(lambda: parse_header(data[8:]))


def _packed(folder: Path) -> bytes:
    path = folder / "plain"
    path.write_bytes(PLAIN)
    return b"".join(lossless.pack(path))


@SETTINGS
@given(data=st.data())
def test_deltas(data: Any, tmp_path: Path) -> None:
    good = data.draw(st.sampled_from([PLAIN, _packed(tmp_path)]))
    sent = data.draw(spoilt(good) | headers() | st.binary(max_size=300))
    path, plain = tmp_path / "delta", tmp_path / "unpacked"
    path.write_bytes(sent)

    def read() -> None:
        size, chunks = len(sent), iter([sent])
        if sent.startswith(lossless.MAGIC):
            size, chunks = lossless.unpacked_size(io.BytesIO(sent), 1 << 20, 100), lossless.unpacked(io.BytesIO(sent), 1 << 20)
        check_structure(SHAPES, first_header(chunks, "the delta", size=size))
        if lossless.is_packed(path):
            lossless.unpack(path, plain, 1 << 20)
        delta = DeltaFile(plain if lossless.is_packed(path) else path)
        for name, shape in SHAPES.items():
            delta.tensor(name, shape, None)

    taken_or_refused(read)
    assert not plain.exists() or plain.stat().st_size <= 1 << 20


@SETTINGS
@given(data=st.data())
def test_patches(data: Any, tmp_path: Path) -> None:
    old, new, patch = tmp_path / "old", tmp_path / "new", tmp_path / "patch"
    old.write_bytes(PLAIN)
    new.write_bytes(PLAIN[:-1] + b"\x01")
    patch.write_bytes(data.draw(spoilt(b"".join(lossless.difference(old, new))) | st.binary(max_size=300)))
    taken_or_refused(lambda: lossless.apply_difference(old, patch, tmp_path / "made", 1 << 20))
    assert old.read_bytes() == PLAIN


@SETTINGS
@given(data=st.data())
def test_assignments(data: Any, tmp_path: Path) -> None:
    body = json.loads(SAMPLE)["full"]
    for _ in range(data.draw(st.integers(1, 3))):
        place = body
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
                place[key] = data.draw(JSON | NUMBERS)
                break
            place = place[key]

    def read() -> None:
        found = LeasedAssignment.model_validate_json(json.dumps(body))
        Residuals(tmp_path / "residuals").of(found.run_id, found.carried)

    taken_or_refused(read, ValidationError)


def nested(opening: str, closing: str) -> st.SearchStrategy[str]:
    return st.sampled_from([3, 40, 2000]).map(lambda n: opening * n + closing * n)


@SETTINGS
@given(
    spoilt(RUN_FILE.encode()).map(lambda raw: raw.decode(errors="replace")) | st.text(max_size=200) | nested("[", "]") | nested("{a: ", "}")
)
def test_run_files(text: str) -> None:
    taken_or_refused(lambda: parse_run_file(text))


OWN = (
    'coordinator = "https://c.example"\n[data.rows]\npath = "rows.jsonl"\nruns = ["a-*"]\n[limits]\nhours = ["22:00-06:00"]\ndisk_gb = 3\n'
)
POLICY = '[coordinator]\n[work]\nruns = ["a-*"]\nnever_train = ["embeddings"]\n[most]\nsteps = 5\n[least]\nrows = 3\n'


@pytest.mark.parametrize("name", ["agent.toml", "policy.toml"])
def test_files_of_an_agents_owner(name: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    good = OWN if name == "agent.toml" else POLICY

    @SETTINGS
    @given(spoilt(good.encode()) | st.binary(max_size=200) | nested("a=[", "]").map(str.encode) | nested("[", "]").map(str.encode))
    def read(data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        taken_or_refused(home.load_config if name == "agent.toml" else lambda: load_policy(home))

    read()
