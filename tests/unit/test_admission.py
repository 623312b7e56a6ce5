"""A delta is judged by its structure and its numbers; what is wrong with it is said by name."""

import math
from dataclasses import replace

import pytest

from fedcybgd.coordinator.domain.admission import BlockNumbers, DeltaRefused, check_structure, judge_numbers
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files.safetensors_header import Header, pack_header, parse_header

EXPECTED = {"layers.0.weight": (4, 3), "layers.0.bias": (4,)}
RULES = AdmissionSection(max_relative_norm=2)
NOTHING: frozenset[str] = frozenset()


def header(*tensors: tuple[str, str, tuple[int, ...]]) -> Header:
    return parse_header(pack_header(tensors)[8:])


def test_exactly_the_tensors_of_the_blocks_in_float32_pass() -> None:
    assert check_structure(EXPECTED, header(("layers.0.bias", "F32", (4,)), ("layers.0.weight", "F32", (4, 3)))) is None


WEIGHT = ("layers.0.weight", "F32", (4, 3))
BIAS = ("layers.0.bias", "F32", (4,))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        pytest.param([WEIGHT], "missing: layers.0.bias; foreign: none", id="missing"),
        pytest.param([], "missing: layers.0.bias, layers.0.weight; foreign: none", id="empty"),
        pytest.param([WEIGHT, BIAS, ("head.weight", "F32", (1,))], "missing: none; foreign: head.weight", id="foreign"),
        pytest.param([WEIGHT, ("layers.1.bias", "F32", (4,))], "missing: layers.0.bias; foreign: layers.1.bias", id="another block"),
        pytest.param([WEIGHT, ("layers.0.bias", "F32", (3,))], r"layers.0.bias has shape \[3\], must be \[4\]", id="shape"),
        pytest.param([("layers.0.weight", "F32", (3, 4)), BIAS], r"has shape \[3, 4\], must be \[4, 3\]", id="transposed"),
        pytest.param([("layers.0.weight", "F32", (12,)), BIAS], r"has shape \[12\], must be", id="flat"),
        pytest.param([WEIGHT, ("layers.0.bias", "F16", (4,))], "layers.0.bias is F16, must be F32", id="dtype"),
    ],
)
def test_any_other_structure_is_refused_by_name(tensors: list[tuple[str, str, tuple[int, ...]]], says: str) -> None:
    with pytest.raises(DeltaRefused, match=says) as refused:
        check_structure(EXPECTED, header(*tensors))
    assert (refused.value.code, refused.value.status) == ("delta_refused", 422)


def test_a_delta_in_another_codec_than_was_asked_for_is_refused_as_that() -> None:
    """Also where its tensors look right: what they mean is another thing."""
    good = header(WEIGHT, BIAS)
    assert check_structure(EXPECTED, replace(good, metadata={"codec": "float32"})) is None
    with pytest.raises(DeltaRefused, match="the delta is in codec 'bfloat16', this run asks for float32"):
        check_structure(EXPECTED, replace(good, metadata={"codec": "bfloat16"}))


def test_many_names_are_cut_short() -> None:
    foreign = [(f"x{i}", "F32", (1,)) for i in range(30)]
    with pytest.raises(DeltaRefused, match="foreign: x0, x1, x10 and 27 more") as refused:
        check_structure(EXPECTED, header(WEIGHT, BIAS, *foreign))
    assert len(refused.value.detail["foreign"]) == 20


def numbers(norm: float = 1, base_norm: float = 1, non_finite: list[str] | None = None) -> BlockNumbers:
    return BlockNumbers(non_finite or [], norm, base_norm)


def test_a_delta_up_to_the_limit_is_accepted_and_beyond_it_rejected() -> None:
    assert judge_numbers({"layers.0": numbers(norm=2.0)}, NOTHING, RULES) is None
    assert judge_numbers({"layers.0": numbers(norm=2.001)}, NOTHING, RULES) == (
        "norm: the delta of layers.0 has norm 2.001, more than 2 times its block's 1"
    )


def test_nothing_is_a_delta_to_accept() -> None:
    assert judge_numbers({"layers.0": numbers(norm=0)}, NOTHING, RULES) is None


@pytest.mark.parametrize("norm", [math.inf, math.nan, 1.0])
def test_a_tensor_that_is_not_finite_is_named(norm: float) -> None:
    reason = judge_numbers({"layers.0": numbers(norm, non_finite=["a", "b", "c", "d"])}, NOTHING, RULES)
    assert reason == "non_finite: a, b, c and 1 more in block layers.0"


def test_a_norm_that_is_not_a_number_is_never_accepted() -> None:
    assert judge_numbers({"layers.0": numbers(math.nan)}, NOTHING, RULES) is not None
    assert judge_numbers({"layers.0": numbers(math.inf)}, NOTHING, RULES) is not None


def test_blocks_trained_along_may_move_by_more_than_they_weigh_but_must_be_finite() -> None:
    found = {"layers.0": numbers(), "head": numbers(norm=99)}
    assert judge_numbers(found, frozenset({"head"}), RULES) is None
    assert judge_numbers(found, NOTHING, RULES) is not None
    reason = judge_numbers({"head": numbers(non_finite=["head.weight"])}, frozenset({"head"}), RULES)
    assert reason == "non_finite: head.weight in block head"


def test_without_a_limit_only_numbers_that_are_finite_count() -> None:
    free = AdmissionSection(max_relative_norm=None)
    assert judge_numbers({"layers.0": numbers(norm=1e9)}, NOTHING, free) is None
    assert judge_numbers({"layers.0": numbers(non_finite=["w"])}, NOTHING, free) is not None


def test_what_is_not_finite_is_told_before_a_norm() -> None:
    found = {"layers.0": numbers(norm=99), "layers.1": numbers(non_finite=["w"])}
    assert str(judge_numbers(found, NOTHING, RULES)).startswith("non_finite: w in block layers.1")


FACTORS = {"a.adapter_left": (6, 2), "a.adapter_right": (2, 16)}
LEFT, RIGHT = ("a.adapter_left", "F32", (6, 2)), ("a.adapter_right", "F32", (2, 16))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        pytest.param([LEFT], "missing: a.adapter_right", id="one of two"),
        pytest.param([("a.adapter_left", "F32", (6, 9)), ("a.adapter_right", "F32", (9, 16))], r"has shape \[6, 9\]", id="a rank above the matrix"),
        pytest.param([("a.adapter_left", "F32", (6, 0)), ("a.adapter_right", "F32", (0, 16))], r"has shape \[6, 0\]", id="no rank"),
        pytest.param([("a.adapter_left", "F32", (2, 6)), RIGHT], r"has shape \[2, 6\]", id="turned"),
        pytest.param([LEFT, ("a.adapter_right", "F64", (2, 16))], "is F64, must be F32", id="wider"),
        pytest.param([LEFT, ("a.adapter_right", "BF16", (2, 16))], "is BF16, must be F32", id="narrower"),
        pytest.param([LEFT, RIGHT, ("a.weight", "F32", (6, 16))], "foreign: a.weight", id="the matrix itself"),
        pytest.param([LEFT, RIGHT, ("b.adapter_left", "F32", (6, 2))], "foreign: b.adapter_left", id="beside another"),
        pytest.param([LEFT, ("a.adapter_right", "F32", (1, 16)), ("a.adapter_right::rows", "I32", (1,))], "foreign: a.adapter_right::rows", id="by rows"),
        pytest.param([LEFT, RIGHT, ("a.adapter_right::scales", "F32", (2,))], "foreign: a.adapter_right::scales", id="scales of another codec"),
    ],
)  # fmt: skip
def test_factors_of_any_other_form_are_refused_by_name(tensors: list[tuple[str, str, tuple[int, ...]]], says: str) -> None:
    assert check_structure(FACTORS, header(LEFT, RIGHT)) is None
    with pytest.raises(DeltaRefused, match=says):
        check_structure(FACTORS, header(*tensors))


def test_a_name_that_stands_twice_is_no_header() -> None:
    """Whichever of the two was looked at, the other might be read."""
    entry = '"a.adapter_left": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    with pytest.raises(HeaderError, match="no JSON"):
        parse_header(f"{{{entry}, {entry}}}".encode())
