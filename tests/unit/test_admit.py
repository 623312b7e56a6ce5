"""The engine looks at a delta's numbers itself: what is not finite, or would not be once it was added, never counts."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fedcybgd.coordinator.domain.jobs.payloads import AdmitPayload, AdmitResult
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.coordinator.engine.admit import admit
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage import open_store
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.training import Corrections
from fedcybgd.shared.tensors import delta_file
from fedcybgd.shared.tensors.deltas import encode_delta

Tensors = dict[str, torch.Tensor]
BLOCKS: dict[str, Tensors] = {
    "layers.0": {"a.weight": torch.full((6, 4), 0.5), "a.bias": torch.ones(3)},
    "head": {"h.weight": torch.ones(5, 4)},
}
LARGEST = 3.4e38
"""Float32 goes no farther than 3.4028e38."""


def admitted(
    home: Path,
    delta: Tensors,
    blocks: dict[str, Tensors] = BLOCKS,
    most: float | None = None,
    codec: str = "float32",
    corrections: Corrections | None = None,
    labels: int | None = None,
) -> AdmitResult:
    """What the engine makes of a delta; without a limit to norms nothing but the finite check stands between it and the model."""
    store, refs = open_store(home / "blobs"), []
    for name, tensors in blocks.items():
        digest, size = write_blob(store, save(tensors))
        refs.append(ShardRef(block=name, version=0, codec="exact", digest=digest, size=size))
    digest, _ = write_blob(store, save(delta, {"codec": codec}))
    rules = AdmissionSection(max_relative_norm=most)
    trained, corrected = (refs, []) if corrections is None else ([], refs)
    return admit(store, AdmitPayload(
        assignment_id="asg_0123456789abcdef", delta=digest, blocks=trained, always=["head"], rules=rules, corrected=corrected, corrections=corrections,
        labels=labels,
    ))  # fmt: skip


def small(**values: float) -> Tensors:
    """A delta that is good but for the last number of the tensors that are named; two underscores are a dot."""
    tensors = {name: torch.full_like(tensor, 1e-3) for block in BLOCKS.values() for name, tensor in block.items()}
    for name, value in values.items():
        tensors[name.replace("__", ".")].flatten()[-1] = value
    return tensors


def test_a_good_delta_is_measured_and_nothing_is_said_against_it(tmp_path: Path) -> None:
    result = admitted(tmp_path, small())
    assert result.rejected_because is None
    assert result.deltas["layers.0"].norm == pytest.approx(1e-3 * 27**0.5)
    assert result.deltas["head"].base_norm == pytest.approx(20**0.5)


@pytest.mark.parametrize("rows_at_once", [1 << 20, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "block"), [("a.weight", "layers.0"), ("a.bias", "layers.0"), ("h.weight", "head")])
def test_what_is_not_finite_is_rejected_by_name_in_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: str, value: float, rows_at_once: int
) -> None:
    monkeypatch.setattr(delta_file, "NUMBERS", rows_at_once)
    result = admitted(tmp_path, small(**{name.replace(".", "__"): value}))
    assert result.rejected_because == f"non_finite: {name} in block {block}"
    assert result.deltas.keys() == BLOCKS.keys() - {block}, "a norm that is no number is not remembered"


@pytest.mark.parametrize(("name", "block"), [("a.weight", "layers.0"), ("h.weight", "head")])
def test_finite_numbers_whose_sum_is_not_are_rejected(tmp_path: Path, name: str, block: str) -> None:
    grown = {b: {n: torch.full_like(t, LARGEST) if n == name else t for n, t in tensors.items()} for b, tensors in BLOCKS.items()}
    delta = small(**{name.replace(".", "__"): LARGEST})
    assert admitted(tmp_path, delta, grown).rejected_because == f"non_finite: {name} in block {block}"
    assert admitted(tmp_path, small(), grown).rejected_because is None, "what is large already may stay so"
    back = small(**{name.replace(".", "__"): -LARGEST})
    assert admitted(tmp_path, back, grown).rejected_because is None


def test_a_codec_that_rounds_to_infinity_is_rejected(tmp_path: Path) -> None:
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in small(h__weight=LARGEST).items()}
    assert rounded["h.weight"].isinf().any()
    assert admitted(tmp_path, rounded, codec="bfloat16").rejected_because == "non_finite: h.weight in block head"


# ---- two factors ----------------------------------------------------------------------------------------------------

LEFT, RIGHT = "a.adapter_left", "a.adapter_right"
MATRIX = {"layers.0": {"a.weight": torch.full((6, 4), 0.5), "a.bias": torch.ones(3)}}
CORRECTIONS = Corrections(rank=2, scale=1e6, learning_rate=1e-3, matrices=["a.weight"])
SPOILT = {
    "NaN beside zeros": ({LEFT: math.nan}, {RIGHT: 0.0}),
    "infinity beside zeros": ({RIGHT: math.inf}, {LEFT: 0.0}),
    "infinities that cancel": ({LEFT: math.inf, RIGHT: -math.inf}, {}),
    "a product beyond float32": ({LEFT: 1e25, RIGHT: 1e25}, {}),
    "a product whose scale is": ({LEFT: 1e17, RIGHT: 1e17}, {}),
    "products that cancel": ({LEFT: 1e25, RIGHT: 1e25}, {"minus": 1.0}),
}


def factors(last: dict[str, float], whole: dict[str, float]) -> Tensors:
    made = {LEFT: torch.full((6, 2), 1e-3), RIGHT: torch.full((2, 4), 1e-3)}
    for name, value in whole.items():
        if name in made:
            made[name].fill_(value)
    for name, value in last.items():
        made[name][-1, -1] = value
        if "minus" in whole:
            made[name][-1 if name == LEFT else 0, 0 if name == LEFT else -1] = value if name == LEFT else -value
    return made


@pytest.mark.parametrize("rows_at_once", [1 << 20, 4])
@pytest.mark.parametrize("how", SPOILT)
def test_corrections_that_come_to_no_number_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, rows_at_once: int
) -> None:
    monkeypatch.setattr(delta_file, "NUMBERS", rows_at_once)
    assert admitted(tmp_path, factors({}, {}), MATRIX, corrections=CORRECTIONS).rejected_because is None
    spoilt = admitted(tmp_path, factors(*SPOILT[how]), MATRIX, corrections=CORRECTIONS)
    assert spoilt.rejected_because == "non_finite: a.weight in block layers.0"


@pytest.mark.parametrize("how", SPOILT)
def test_adapters_that_come_to_no_number_are_rejected(tmp_path: Path, how: str) -> None:
    """Each factor of theirs is looked at as what it is, a trained tensor: of two that are finite the product may not be."""
    blocks = {"adapters": {LEFT: torch.zeros(6, 2), RIGHT: torch.ones(2, 4)}}
    good = factors({}, {})
    assert admitted(tmp_path, good, blocks).rejected_because is None
    assert admitted(tmp_path, {n: t * 1e6 for n, t in good.items()}, blocks).rejected_because is None
    assert str(admitted(tmp_path, factors(*SPOILT[how]), blocks).rejected_because).startswith("non_finite: a.")


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_of_a_head_it_is_seen_which_rows_are_moved(tmp_path: Path, codec: str) -> None:
    head = {"dense.weight": torch.ones(4, 4), "h.bias": torch.zeros(5), "h.weight": torch.ones(5, 4)}
    change = {name: torch.full_like(tensor, 1e-3) for name, tensor in head.items()}
    change["h.weight"][[0, 2, 3]] = 0.0
    change["h.weight"][4, :3] = 0.0
    sent: Tensors = dict(encode_delta(change, codec))
    for labels, expected in ((5, [1, 4]), (4, [0, 1, 2, 3]), (7, None), (None, None)):
        found = admitted(tmp_path, sent, {"head": head}, codec=codec, labels=labels)
        assert found.deltas["head"].moved == expected
