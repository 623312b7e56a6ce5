"""A delta arrives within its codec's error, in the layout that was announced, and adds up to the same bits everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedcybgd.shared.contract.delta_layout import DELTA_CODECS, GROUP, DeltaCodecError, expected_layout
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.tensors import quantized
from fedcybgd.shared.tensors.deltas import Encoded, add_decoded, decoded, encode_delta
from fedcybgd.shared.tensors.quantized import CodecError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


DELTA = {
    "w": normal(48, 130) * 1e-5,
    "odd": normal(6, 33) * 1e-3,
    "bias": normal(48) * 1e-4,
    "scalar": torch.tensor(0.5),
    "conv": normal(20, 3, 4),
}


def relative_error(found: Tensor, real: Tensor) -> float:
    return float((found - real).norm() / real.norm())


@pytest.mark.parametrize(("codec", "bound"), [("float32", 0.0), ("bfloat16", 0.003), ("int8", 0.01), ("int4", 0.092)])
def test_the_error_is_that_of_the_codec(tmp_path: Path, codec: str, bound: float) -> None:
    path = tmp_path / "delta"
    save_file(encode_delta(DELTA, codec), path, {"codec": codec})
    with safe_open(path, "pt") as file:
        found = {name: decoded(file, name, tuple(t.shape), codec) for name, t in DELTA.items()}
    for name, real in DELTA.items():
        assert found[name].dtype == torch.float32
        assert found[name].shape == real.shape
        assert relative_error(found[name], real) <= bound
    if codec != "bfloat16":
        assert all(torch.equal(found[name], DELTA[name]) for name in ("bias", "scalar", "conv"))


@pytest.mark.parametrize("codec", DELTA_CODECS)
def test_files_have_the_announced_layout(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "delta"
    save_file(encode_delta(DELTA, codec), path)
    found = {name: (t.dtype, t.shape) for name, t in read_header(path).tensors.items()}
    assert found == expected_layout({n: tuple(t.shape) for n, t in DELTA.items()}, codec)


def test_groups_are_as_long_as_those_of_shards() -> None:
    assert GROUP == quantized.GROUP


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(0,), (), (3,), (2, 16), (2, 17), (3, 64), (2, 3, 66), (0, 64), (4, 0)]),
    st.sampled_from([0.0, 1e-45, 1e-39, 1e-30, 1e-6, 1.0, 1e30]),
    st.sampled_from(DELTA_CODECS),
)
def test_round_trip(shape: tuple[int, ...], scale: float, codec: str) -> None:
    delta = normal(*shape) * scale
    if delta.dim() > 1 and delta.numel():
        delta[0] = 0
    found = decoded(encode_delta({"w": delta}, codec), "w", shape, codec)
    assert found.shape == delta.shape
    # Scales are no finer than 2**-100, so what is smaller than that may be lost.
    assert float((found - delta).abs().amax() if delta.numel() else 0) <= 0.4 * scale + 2**-95
    if delta.dim() > 1 and delta.numel():
        assert not found[0].any(), "rows of zeros stay zeros"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("codec", DELTA_CODECS)
def test_values_that_are_not_finite_are_not_sent(codec: str, value: float) -> None:
    delta = normal(4, 64)
    delta[1, 63] = value
    with pytest.raises(CodecError, match=r"w: .*not finite"):
        encode_delta({"w": delta}, codec)


@pytest.mark.parametrize("codec", DELTA_CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e38])
def test_bad_values_and_scales_are_refused(codec: str, value: float) -> None:
    encoded = encode_delta({"w": normal(4, 64)}, codec)
    part = encoded["w" if codec in ("float32", "bfloat16") else "w::scales"]
    part.view(-1)[2] = value
    if codec in ("float32", "bfloat16") and abs(value) <= 1e38:
        decoded(encoded, "w", (4, 64), codec)
    else:
        with pytest.raises(CodecError, match="w"):
            decoded(encoded, "w", (4, 64), codec)


def test_bad_offsets_are_refused() -> None:
    encoded = encode_delta({"w": normal(4, 64)}, "int4")
    encoded["w::offsets"][1, 0] = float("nan")
    with pytest.raises(CodecError, match="w::offsets"):
        decoded(encoded, "w", (4, 64), "int4")


def test_a_scale_of_zero_belongs_to_a_row_of_zeros() -> None:
    encoded = encode_delta({"w": torch.zeros(4, 64)}, "int8")
    assert not encoded["w::scales"].any()
    assert not decoded(encoded, "w", (4, 64), "int8").any()
    encoded["w"][2, 5] = 1
    with pytest.raises(CodecError, match="row of zeros"):
        decoded(encoded, "w", (4, 64), "int8")


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_missing_and_wrong_parts_are_refused(tmp_path: Path, codec: str) -> None:
    encoded = encode_delta({"w": normal(4, 64)}, codec)
    short = Encoded({"w": encoded["w"]})
    with pytest.raises(CodecError, match="w::scales: is missing"):
        decoded(short, "w", (4, 64), codec)
    save_file(short, tmp_path / "x")
    with safe_open(tmp_path / "x", "pt") as file, pytest.raises(CodecError, match="w::scales: is missing"):
        decoded(file, "w", (4, 64), codec)
    with pytest.raises(CodecError, match="w: is torch"):
        decoded(encoded, "w", (4, 66), codec)
    with pytest.raises(CodecError, match="w: is torch"):
        decoded(encoded, "w", (4, 64), "float32")


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(DeltaCodecError):
        encode_delta({"w": normal(4, 64)}, "int3")
    with pytest.raises(DeltaCodecError):
        expected_layout({"w": (4, 64)}, "exact")


def test_half_precision_deltas_are_taken() -> None:
    delta = normal(4, 64).to(torch.bfloat16)
    assert torch.equal(decoded(encode_delta({"w": delta}, "float32"), "w", (4, 64), "float32"), delta.float())


def test_sums_round_each_product_and_each_sum_once() -> None:
    base = normal(50, 101)
    terms = [(normal(50, 101, seed=s) * 1e-3, w) for s, w in ((1, 0.4), (2, 1 / 3), (3, 0.1))]
    expected = base.numpy().copy()
    for delta, weight in terms:
        expected = expected + delta.numpy() * np.float32(weight)
    before = base.clone()
    assert np.array_equal(add_decoded(base, terms).numpy(), expected)
    assert torch.equal(base, before)


def test_any_number_of_threads_gives_the_same_sum() -> None:
    base, terms = normal(301, 333), [(normal(301, 333, seed=1), 0.3), (normal(301, 333, seed=2), 0.7)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = add_decoded(base, terms)
        torch.set_num_threads(3)
        assert torch.equal(add_decoded(base, terms), one)
    finally:
        torch.set_num_threads(threads)
