"""A quantized tensor stays within its code's error, its scales are never zero, and the same input gives the same bytes."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from fedcybgd.shared.tensors.codecs import CodecError
from fedcybgd.shared.tensors.quantized import GROUP, QuantizedTensor, quantize


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: torch.Tensor, real: torch.Tensor) -> float:
    return float((found - real).norm() / real.norm())


@st.composite
def tensors(draw: DrawFn) -> torch.Tensor:
    shape = draw(st.sampled_from([(1, 2), (3, 64), (2, 130), (2, 3, 66), (1, 128), (5, 10)]))
    scale = draw(st.sampled_from([0.0, 1e-45, 1e-39, 1e-37, 1e-30, 1e-5, 1.0, 1e30, 1e37]))
    shift = draw(st.sampled_from([0.0, 1.0, -1.0]))
    tensor = (normal(*shape, seed=draw(st.integers(0, 9))).clamp(-9, 9) + shift) * scale
    if draw(st.booleans()):
        tensor[..., draw(st.integers(0, shape[-1] - 1))] = 0
    return tensor.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.007), (4, 0.089)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_on_normal_weights_is_small(bits: int, bound: float, dtype: torch.dtype) -> None:
    weight = (normal(64, 512) * 0.04).to(dtype)
    quantized = quantize(weight, bits)
    assert relative_error(quantized.dequantize(), weight.float()) < bound
    assert relative_error(quantized.dequantize(torch.bfloat16).float(), weight.float()) < bound + 0.001


@settings(max_examples=60, deadline=None)
@given(tensors(), st.sampled_from([8, 4]))
def test_round_trip(tensor: torch.Tensor, bits: int) -> None:
    quantized = quantize(tensor, bits)
    groups = -(-tensor.shape[-1] // GROUP)
    assert quantized.shape == tuple(tensor.shape)
    assert quantized.scales.shape == (*tensor.shape[:-1], groups)
    assert quantized.scales.dtype == torch.bfloat16
    assert bool((quantized.scales > 0).all())
    assert bool(quantized.scales.isfinite().all())
    found = quantized.dequantize()
    for start in range(0, tensor.shape[-1], GROUP):
        real = tensor[..., start : start + GROUP].float()
        span = real.amax(-1) - real.amin(-1) if bits == 4 else 2 * real.abs().amax(-1)
        # Half a step (a whole one at the ends of a narrowed range) and what bfloat16 rounds of the offset; 2**-95: scales are no finer.
        allowed = span / (15 if bits == 4 else 254) * 1.01 + real.abs().amax(-1) * (2**-8 if bits == 4 else 0) + 2**-95
        assert bool(((found[..., start : start + GROUP] - real).abs() <= allowed.unsqueeze(-1)).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits: int) -> None:
    quantized = quantize(torch.zeros(3, 100), bits)
    assert bool((quantized.scales > 0).all())
    assert torch.equal(quantized.dequantize(), torch.zeros(3, 100))


def test_four_bits_are_packed_low_nibble_first() -> None:
    row = torch.arange(16.0).repeat(1, 4)
    quantized = quantize(row, 4)
    low, high = quantized.codes & 15, quantized.codes >> 4
    assert quantized.codes.shape == (1, 32)
    assert torch.equal(torch.stack([low, high], -1).flatten(1)[0, :16], torch.arange(16, dtype=torch.uint8))


@pytest.mark.parametrize("bits", [8, 4])
def test_any_number_of_threads_gives_the_same_bytes(bits: int) -> None:
    weight = normal(300, 1030)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            quantized = quantize(weight, bits)
            results.append(
                (quantized.codes, quantized.scales, quantized.offsets, quantized.dequantize(), quantized.dequantize(torch.bfloat16))
            )
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize(
    ("bits", "digest"),
    [
        (8, "beab16c3d3c7c8437b4276378f2d7cd139c392fb8e28e9b883833173d0f96da1"),
        (4, "a876df0a2f151a4c82504c1d67e68ffb0e19ffc50f595bfbc7508fcdd440db3d"),
    ],
)
def test_the_bytes_are_those_of_every_shard_that_was_ever_made(bits: int, digest: str) -> None:
    """Also of groups of zeros of either sign, where minimum and maximum are the one or the other."""
    numbers = torch.arange(300 * 130)
    values = ((numbers * 7919 % 4001 - 2000).float() / 1000).view(300, 130)
    values[::3] = 0.0
    values[1::3, :64] = torch.where(numbers[:64] % 2 == 0, 0.0, -0.0)
    values[2::3, 64:] = -0.0
    quantized, found = quantize(values, bits), hashlib.sha256()
    for part in (quantized.codes, quantized.scales, quantized.offsets):
        if part is not None:
            found.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    assert found.hexdigest() == digest


@pytest.mark.parametrize("bits", [8, 4])
def test_quantizing_in_parts_changes_nothing(bits: int) -> None:
    """Whole tensors are worked through in parts of rows; where they are cut must not show."""
    weight = normal(600, 1030)
    whole, part = quantize(weight, bits), quantize(weight[500:], bits)
    assert torch.equal(whole.codes[500:], part.codes)
    assert torch.equal(whole.scales[500:], part.scales)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("n", [128, 100])
def test_rows_are_rows_of_the_whole(bits: int, n: int) -> None:
    quantized = quantize(normal(20, n), bits)
    indices = torch.tensor([[3, 3, 19], [0, 7, 1]])
    assert quantized.rows(indices).shape == (2, 3, n)
    assert torch.equal(quantized.rows(indices), quantized.dequantize()[indices])


def test_sizes_count_every_part() -> None:
    assert quantize(normal(4, 128), 8).nbytes == 4 * 128 + 4 * 2 * 2
    assert quantize(normal(4, 128), 4).nbytes == 4 * 64 + 2 * 4 * 2 * 2


def test_a_view_and_a_device() -> None:
    weight = normal(64, 96).T
    quantized = quantize(weight, 4).to("cpu")
    assert isinstance(quantized, QuantizedTensor)
    assert torch.equal(quantized.dequantize(), quantize(weight.contiguous(), 4).dequantize())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_values_that_are_not_finite_are_refused(bits: int, value: float) -> None:
    weight = normal(4, 130)
    weight[2, 129] = value
    with pytest.raises(CodecError, match="not finite"):
        quantize(weight, bits)


@pytest.mark.parametrize(
    ("tensor", "bits", "message"),
    [
        (torch.zeros(4, 65), 4, "odd"),
        (torch.zeros(64), 8, "two or more dimensions"),
        (torch.zeros(4, 64, dtype=torch.int64), 8, "floating-point"),
        (torch.zeros(4, 64), 3, "3 bits"),
    ],
)
def test_what_cannot_be_quantized_is_refused(tensor: torch.Tensor, bits: int, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        quantize(tensor, bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_tensor_without_values(bits: int) -> None:
    for shape in ((0, 64), (4, 0)):
        assert quantize(torch.zeros(shape), bits).dequantize().shape == shape
