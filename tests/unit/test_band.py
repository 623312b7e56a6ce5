"""Deltas are compared with what their run accepted before; what is expected is worked out here with numpy, or by hand."""

import sys
from types import FrameType

import numpy as np
import pytest
import torch

from fedcybgd.coordinator.domain import sketch
from fedcybgd.coordinator.domain.band import (
    REMEMBERED,
    WIDE,
    AcceptedDelta,
    AcceptedDeltas,
    BandResult,
    BlockDelta,
    believed_steps,
    no_work,
    out_of_band,
    reach,
)
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.coordinator.engine.sketches import Sketcher
from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings

RULES = AdmissionSection(norm_band=5)
DRAW = np.random.default_rng(0)
SIZE = WIDE


def sketched(values: np.ndarray, piece: int = 777) -> str:
    """As the engine reads a tensor: some numbers at a time."""
    sketcher, tensor = Sketcher(), torch.tensor(values, dtype=torch.float32)
    for start in range(0, len(tensor), piece):
        sketcher.add("w", len(tensor), start, tensor[start : start + piece])
    return sketcher.packed()


def delta(values: np.ndarray, base_norm: float = 10.0, reach: float = 1000.0) -> BlockDelta:
    norm = float(np.linalg.norm(values))
    return BlockDelta(norm=norm, base_norm=base_norm, size=len(values), sketch=sketched(values), reach=reach)


def of_norm(norm: float, reach: float = 1000.0, base_norm: float = 10.0) -> BlockDelta:
    values = DRAW.standard_normal(SIZE)
    return delta(values / np.linalg.norm(values) * norm, base_norm, reach)


def accepted(*deltas: BlockDelta, block: str = "layers.0", kind: str = "layer", agents: str = "a") -> list[AcceptedDelta]:
    """`agents` hand them in by turns, a letter each."""
    return [AcceptedDelta(block, kind, number, agents[number % len(agents)], found) for number, found in enumerate(deltas)]


def result(
    found: BlockDelta, past: list[AcceptedDelta], agent: str = "a", among: int = 1, rules: AdmissionSection = RULES, kind: str = "layer"
) -> BandResult | None:
    return out_of_band("layers.0", kind, found, AcceptedDeltas(past, agent, among), rules)


def unworked(block: str, found: BlockDelta, past: list[AcceptedDelta]) -> str | None:
    return no_work(block, found, AcceptedDeltas(past, "a", 1))


def judged(found: BlockDelta, past: list[AcceptedDelta], rules: AdmissionSection = RULES, kind: str = "layer") -> str | None:
    """By a run of one agent, whose history is its own."""
    against = result(found, past, rules=rules, kind=kind)
    return against.reason if against is not None else None


class TestSketch:
    @pytest.mark.parametrize("piece", [1, 100, 4096, 5000])
    def test_it_is_the_same_however_many_rows_are_read_at_once(self, piece: int) -> None:
        values = DRAW.standard_normal(SIZE)
        apart = sketch.cosine(sketch.unpacked(sketched(values, piece)), sketch.unpacked(sketched(values)))
        assert apart > 0.9999

    @pytest.mark.parametrize("angle", [0, 20, 60, 90, 120, 180])
    def test_cosines_of_sketches_are_those_of_the_deltas(self, angle: int) -> None:
        one, other = DRAW.standard_normal((2, 200_000))
        other -= (other @ one) / (one @ one) * one
        turned = np.cos(np.radians(angle)) * one / np.linalg.norm(one) + np.sin(np.radians(angle)) * other / np.linalg.norm(other)
        found = sketch.cosine(sketch.unpacked(sketched(one, 50_000)), sketch.unpacked(sketched(turned, 50_000)))
        assert found == pytest.approx(np.cos(np.radians(angle)), abs=0.2)  # three deviations of 256 sums

    @pytest.mark.parametrize(
        "values",
        [np.zeros(10), np.full(10, np.nan), np.full(10, np.inf), np.full(10, 3e38), np.append(np.ones(9), np.nan)],
    )
    def test_what_has_no_direction_is_like_nothing(self, values: np.ndarray) -> None:
        found = sketched(values)
        assert np.isfinite(sketch.unpacked(found)).all()


def settings(steps: int | None, rate: float, decay: float = 0.0) -> TrainSettings:
    groups = [ParameterGroup(blocks=["layers.0"], learning_rate=rate), ParameterGroup(blocks=["head"], learning_rate=10 * rate)]
    return TrainSettings(task="causal-lm", max_length=8, steps=steps, weight_decay=decay, groups=groups, seed=0)


@pytest.mark.parametrize("gradients", ["steady", "noisy", "rare", "growing"])
@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_no_visit_of_adamw_goes_beyond_its_reach(gradients: str, steps: int, decay: float) -> None:
    """The real optimizer, on gradients made to move it far."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(500))
    before, optimizer = weight.detach().clone(), torch.optim.AdamW([weight], lr=0.01, weight_decay=decay)
    for step in range(steps):
        noise = torch.randn(500)
        weight.grad = {
            "steady": torch.ones(500),
            "noisy": noise,
            "rare": noise * (step == steps - 1),
            "growing": 1.5**step * torch.ones(500),
        }[gradients]
        optimizer.step()
    found = delta((weight.detach() - before).numpy(), float(before.norm()))
    bound = reach(settings(steps, 0.01, decay), "layers.0", found, steps)
    assert found.norm <= 1.2 * bound, "and twice that is allowed"
    assert judged(found.model_copy(update={"reach": bound}), []) is None


def test_a_block_reaches_as_far_as_its_rate_and_the_steps_go() -> None:
    assert reach(settings(10, 0.01), "layers.0", of_norm(1.0), 10) == pytest.approx(0.1 * SIZE**0.5)
    assert reach(settings(10, 0.01), "head", of_norm(1.0), 10) == pytest.approx(1.0 * SIZE**0.5)


@pytest.mark.parametrize(
    ("told", "claimed", "seconds", "believed"),
    [
        (10, 10**9, 10**9, 10),
        (10, 1, 0.0, 10),
        (None, 20, 1.0, 20),
        (None, 0, 1.0, 1),
        (None, 2**62, 0.5, 500),
        (None, 2**62, 10**9, 100_000),
        (None, 20, -3600.0, 1),
    ],
)
def test_steps_are_the_run_files_and_else_what_an_agent_can_have_done(
    told: int | None, claimed: int, seconds: float, believed: int
) -> None:
    assert believed_steps(settings(told, 0.01), claimed, seconds) == believed


def test_what_no_visit_can_reach_is_out_before_there_is_a_history() -> None:
    for kind in ("layer", "head", "norm"):
        assert judged(of_norm(2.0, reach=1.01), [], kind=kind) is None
        assert str(judged(of_norm(2.0, reach=0.99), [], kind=kind)).startswith("norm: the delta of layers.0 has norm 2; its steps")


def test_the_band_is_that_of_blocks_of_the_kind_once_there_are_four() -> None:
    usual = [of_norm(norm, reach=10) for norm in (1.0, 1.1, 0.9, 1.05)]
    far, near = of_norm(6.0, reach=10), of_norm(4.9, reach=10)
    assert judged(far, accepted(*usual)) is not None
    assert judged(near, accepted(*usual)) is None
    assert judged(far, accepted(*usual[:3])) is None
    assert judged(far, accepted(*usual, kind="head")) is None
    assert judged(far, accepted(*usual, block="layers.7")) is not None
    assert judged(near, accepted(*usual), AdmissionSection(norm_band=3)) is not None


def test_a_visit_of_more_steps_or_of_few_long_ones_is_in_line() -> None:
    """Agents have unlike numbers of rows: a long visit goes far, a short one goes straight."""
    usual = accepted(*[of_norm(norm, reach=10) for norm in (1.0, 1.1, 0.9, 1.05)])
    assert judged(of_norm(20.0, reach=200), usual) is None
    assert judged(of_norm(0.5, reach=0.5), usual) is None


def test_where_norms_are_unlike_the_band_is_wide() -> None:
    """Beyond six deviations only: median 1, the median of the distances from it 0.9."""
    usual = accepted(*[of_norm(norm, reach=10) for norm in (0.1, 0.1, 1.0, 2.0, 3.0)])
    limit = 1.0 + 6 * 1.4826 * 0.9
    assert judged(of_norm(limit - 0.1, reach=10), usual) is None
    assert judged(of_norm(limit + 0.1, reach=10), usual) is not None


@pytest.mark.parametrize(
    ("agents", "judge", "among"),
    [
        ("m", "h", 2),
        ("mh", "h", 2),
        ("mhi", "h", 3),
        ("mnh", "i", 5),
        ("mn", "h", 5),
        ("mmmmmmmh", "h", 2),
        ("mnohijk", "k", 7),
        ("mno", "h", 100),
    ],
)
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 0.01])
def test_a_minority_of_the_agents_narrows_no_band(agents: str, judge: str, among: int, scale: float) -> None:
    """m, n and o hand in deltas that are next to nothing, as many as they like; those of the others go as far as they do."""
    small, usual = of_norm(10 * scale, reach=10), of_norm(2.0, reach=10)
    past = accepted(*[small if agents[n % len(agents)] in "mno" else usual for n in range(64)], agents=agents)
    assert result(of_norm(3.0, reach=10), past, judge, among) is None


@pytest.mark.parametrize(("agents", "among"), [("mh", 2), ("mhi", 3), ("mnhij", 5)])
def test_who_goes_far_beyond_most_of_the_others_is_to_blame(agents: str, among: int) -> None:
    past = accepted(*[of_norm(1.0, reach=10) for _ in range(20)], agents=agents)
    against = result(of_norm(6.0, reach=10), past, "m", among)
    assert against is not None
    assert against.blamed
    assert "that this run's bear out" in against.reason


def test_one_agent_among_others_widens_no_band_for_itself() -> None:
    past = accepted(*[of_norm(norm, reach=10) for _ in range(12) for norm in (9.0, 1.0, 1.1)], agents="mhi")
    assert result(of_norm(9.0, reach=10), past, "m", 3) is not None


def test_one_of_two_agents_goes_as_far_as_its_steps_can_and_no_farther() -> None:
    """The threat model names it: each delta lets the next be larger, where nobody can say whose norm is the usual one."""
    past, norm = accepted(*[of_norm(1.0, reach=10) for _ in range(8)], agents="mh"), 1.0
    while norm < 20:
        assert result(of_norm(norm, reach=10), past, "m", 2) is None
        past.append(AcceptedDelta("layers.0", "layer", len(past), "m", of_norm(norm, reach=10)))
        norm *= 1.9
    assert result(of_norm(19.9, reach=10), past, "m", 2) is None
    assert result(of_norm(20.1, reach=10), past, "m", 2) is not None
    assert result(of_norm(5.1, reach=10), accepted(*[of_norm(1.0, reach=10) for _ in range(9)], agents="mhi"), "m", 3) is not None


def test_who_alone_has_a_history_is_held_to_it_without_blame() -> None:
    past = accepted(*[of_norm(1.0, reach=10) for _ in range(20)], agents="m")
    against = result(of_norm(6.0, reach=10), past, "m", 5)
    assert against is not None
    assert not against.blamed
    assert "that its agent's bear out" in against.reason
    assert result(of_norm(6.0, reach=10), past, "h", 5) is None, "nobody else has made it"


def test_what_goes_a_little_of_the_way_is_never_too_far_and_next_to_nothing_tells_nothing() -> None:
    narrow = accepted(*[of_norm(0.02, reach=10) for _ in range(8)], agents="hi")
    assert result(of_norm(0.49, reach=10), narrow, "h", 2) is None
    assert result(of_norm(0.51, reach=10), narrow, "h", 2) is not None
    nothing = accepted(*[of_norm(0.009, reach=10) for _ in range(8)], agents="hi")
    assert result(of_norm(9.0, reach=10), nothing, "h", 2) is None


@pytest.mark.parametrize(
    ("agents", "judge", "among"), [("m", "h", 2), ("mmmmmmmh", "h", 2), ("mhi", "h", 3), ("mn", "h", 5), ("mnhij", "h", 5)]
)
def test_a_minority_of_the_agents_gives_a_run_no_direction(agents: str, judge: str, among: int) -> None:
    """m and n hand in what points against all that the others will train."""
    common = DRAW.standard_normal(SIZE)

    def of(agent: str) -> BlockDelta:
        return delta((-common if agent in "mn" else common) + DRAW.standard_normal(SIZE))

    past = accepted(*[of(agents[n % len(agents)]) for n in range(40)], agents=agents)
    assert result(of(judge), past, judge, among) is None


@pytest.mark.parametrize("rules", [AdmissionSection(norm_band=None), AdmissionSection(max_relative_norm=None)])
def test_who_wants_no_band_has_none(rules: AdmissionSection) -> None:
    usual = accepted(*[of_norm(1.0, reach=10) for _ in range(5)])
    assert judged(of_norm(1e30, reach=1e-9), usual, rules=rules) is None


def test_an_earlier_delta_turned_round_is_out_and_one_repeated_is_told() -> None:
    values = DRAW.standard_normal(SIZE)
    past = accepted(of_norm(1.0), delta(values))
    for factor in (-1.0, -0.3):
        assert judged(delta(factor * values), past) == "direction: the delta of layers.0 is that of round 1, turned round"
        assert unworked("layers.0", delta(factor * values), past) is not None
    for factor in (1.0, 3.7):
        assert judged(delta(factor * values), past) is None
        assert unworked("layers.0", delta(factor * values), past) == "the delta of layers.0 is a multiple of that of round 1"
    assert unworked("layers.1", delta(values), past) is None, "of another block"
    assert unworked("layers.0", delta(np.zeros(SIZE)), past) == "the delta of layers.0 changes nothing"
    assert unworked("layers.0", delta(values + 0.2 * DRAW.standard_normal(SIZE)), past) is None
    small = values[:8]
    assert unworked("layers.0", delta(small), accepted(delta(2 * small))) is None, "eight numbers are soon alike"


def test_what_points_against_all_others_is_out_where_they_have_a_direction() -> None:
    common = DRAW.standard_normal(SIZE)

    def toward(factor: float, noise: float = 1.0) -> BlockDelta:
        return delta(factor * common + noise * DRAW.standard_normal(SIZE))

    agreeing = accepted(*[toward(1.0) for _ in range(6)])
    assert judged(toward(1.0), agreeing) is None
    assert judged(toward(0.0), agreeing) is None
    assert str(judged(toward(-1.1), agreeing)).startswith("direction: the delta of layers.0 points against this run's")
    assert judged(toward(-1.1), agreeing[:4]) is None
    scattered = accepted(*[toward(0.0) for _ in range(6)])
    assert judged(toward(-1.1), scattered) is None
    turning = accepted(*[toward(sign) for sign in (1, 1, 1, 1, -1, 1, -1)])
    assert judged(toward(-1.1), turning) is None, "this run turns round now and then"
    shared = accepted(*[toward(1.0) for _ in range(6)], agents="ab")
    against = result(toward(-1.1), shared, "a", 2)
    assert against is not None
    assert against.blamed


def test_who_comes_back_by_a_smaller_step_is_in() -> None:
    """A head that has learned what there is to learn is soon corrected against all that it has gone so far (cosine -0.9, 0.3 of the norm)."""
    common = DRAW.standard_normal(SIZE)
    agreeing = accepted(*[delta(common + 0.3 * DRAW.standard_normal(SIZE)) for _ in range(6)])
    back = -common + 0.3 * DRAW.standard_normal(SIZE)
    assert judged(delta(1.1 * back), agreeing) is not None
    assert judged(delta(0.5 * back), agreeing) is None


def test_two_labels_may_go_to_and_fro() -> None:
    narrow = DRAW.standard_normal(130)
    agreeing = accepted(*[delta(narrow + 0.3 * DRAW.standard_normal(130)) for _ in range(6)])
    assert judged(delta(-2 * narrow), agreeing) is None


def test_whose_rows_are_new_to_a_model_that_has_settled_may_go_as_far_as_all_did_at_first() -> None:
    """Honest runs of tiny models had 5.7 times the usual norm where another agent's turn came late."""
    settled = accepted(*[of_norm(norm, reach=10) for norm in (2.0, 2.1, 1.9, *[0.2] * 12)], agents="abc")
    assert judged(of_norm(3.9, reach=10), settled) is None
    assert judged(of_norm(4.3, reach=10), settled) is not None


def test_a_delta_of_many_blocks_is_compared_with_each_accepted_one_as_often_as_one_of_few() -> None:
    """Of all blocks: that is what corrections make of every delta. What is counted are calls, of our functions and of the language's."""

    def calls(blocks: int) -> int:
        found = {f"layers.{number}": of_norm(1.0, reach=10) for number in range(blocks)}
        past = [
            AcceptedDelta(block, "layer", round, "mhi"[round % 3], delta)
            for round in range(REMEMBERED // 4)
            for block, delta in found.items()
        ]
        counted = 0

        def count(_frame: FrameType, event: str, _what: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            compared = AcceptedDeltas(past, "m", 3)
            against = [out_of_band(block, "layer", delta, compared, RULES) for block, delta in found.items()]
        finally:
            sys.setprofile(None)
        assert against == [None] * blocks
        return counted

    few, many = calls(4), calls(16)
    assert many < 5 * few, "four times the blocks"
