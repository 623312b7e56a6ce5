"""The policies: which block reaches an agent in which codec, what fits it, and what happens under the fidelity floor."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcybgd.coordinator.domain.compression import (
    AgentLimits,
    BlockFacts,
    CompressionInvalid,
    Costs,
    DoesNotFit,
    FidelityTooLow,
    Plan,
    apply_floor,
    auto_ladder,
    plan,
    plan_key,
    pruned_codec,
)
from fedcybgd.coordinator.domain.opening import FIRST, needed
from fedcybgd.coordinator.domain.run_file import CompressionSection, RunFileInvalid, checked
from fedcybgd.shared.contract.versions import TRAINED_IN_8_BITS

BYTES = {"exact": 4000, "int8": 1050, "int4": 580, "pruned:25": 3000, "pruned:90": 400}
SMALL = {"exact": 100, "int8": 110, "int4": 110}


def settings(policy: str = "auto", **values: Any) -> CompressionSection:
    return CompressionSection.model_validate({"policy": policy, **values})


def model(layers: int = 6, updated: tuple[int, ...] = (), influence: list[float | None] | None = None) -> list[BlockFacts]:
    given = influence if influence is not None else [0.5] * layers
    return [
        BlockFacts("embeddings", "embeddings", 1000),
        *(BlockFacts(f"layers.{i}", "layer", 1000, 1 if i in updated else 0, given[i]) for i in range(layers)),
        BlockFacts("norm", "norm", 25),
        BlockFacts("head", "head", 1000),
    ]


def size(chosen: Plan) -> int:
    return sum((SMALL if name == "norm" else BYTES)[codec] for name, codec in chosen.items() if codec != "dropped")


COSTS = Costs(memory=size, download=size)


def codecs(chosen: Plan | DoesNotFit, *names: str) -> list[str]:
    assert not isinstance(chosen, DoesNotFit), chosen.reason
    return [chosen[name] for name in names]


def layers(chosen: Plan | DoesNotFit) -> list[str]:
    assert not isinstance(chosen, DoesNotFit), chosen.reason
    return [codec for name, codec in chosen.items() if name.startswith("layers.")]


def test_none_leaves_everything_exact() -> None:
    assert set(plan(settings("none"), model(), {"layers.1"}).values()) == {"exact"}  # type: ignore[union-attr]


def test_int8_is_for_every_frozen_block_that_it_makes_smaller() -> None:
    chosen = plan(settings("int8"), model(), {"layers.1", "head"})
    assert codecs(chosen, "embeddings", "layers.0", "layers.1", "norm", "head") == ["int8", "int8", "exact", "int8", "exact"]


@pytest.mark.parametrize("policy", ["int8", "int4", "auto"])
def test_what_is_trained_comes_as_the_run_file_says(policy: str) -> None:
    plans = [plan(settings(policy, trained=trained), model(), {"layers.1", "head"}) for trained in ("exact", "int8")]
    assert [codecs(found, "layers.1", "head") for found in plans] == [["exact"] * 2, ["int8"] * 2]
    others = [name for name in plans[0] if name not in ("layers.1", "head")]  # type: ignore[union-attr]
    assert codecs(plans[0], *others) == codecs(plans[1], *others)


@pytest.mark.parametrize(
    ("more", "field", "says"),
    [
        ({"compression": {"trained": "int8", "policy": "none"}}, "compression.trained", "policy: none"),
        ({"compression": {"trained": "int8", "policy": "hybrid"}}, "compression.trained", "policy: hybrid"),
        ({"compression": {"trained": "int8"}, "exposure": {"max_exact_blocks": 3}}, "exposure.max_exact_blocks", "nothing to bound"),
    ],
)
def test_8_bits_to_train_from_where_something_comes_exact_all_the_same_are_refused(more: Any, field: str, says: str) -> None:
    spec = {"name": "r", "model": "m", "task": {"kind": "causal-lm"}}
    with pytest.raises(RunFileInvalid, match=rf"{field}: .*{says}"):
        checked(spec | more)
    fine = checked(spec | {"compression": {"trained": "int8"}})
    assert (needed(fine), needed(checked(spec))) == (TRAINED_IN_8_BITS, FIRST)


def test_int4_is_for_layers_and_the_rest_is_int8() -> None:
    chosen = plan(settings("int4"), model(), {"layers.1"})
    assert codecs(chosen, "embeddings", "layers.0", "layers.1", "norm", "head") == ["int8", "int4", "exact", "int8", "int8"]


def test_hybrid_drops_the_least_influential_of_what_is_not_updated_and_thins_the_updated() -> None:
    # layers.0 has the least influence of all, but was updated; layers.4 is trained. Of 1, 2, 3, 5, half are dropped.
    blocks = model(6, updated=(0,), influence=[0.0, 0.4, 0.1, 0.3, 0.05, 0.2])
    chosen = plan(settings("hybrid"), blocks, {"layers.4", "head"})
    assert layers(chosen) == ["pruned:25", "exact", "dropped", "exact", "exact", "dropped"]
    assert codecs(chosen, "embeddings", "norm", "head") == ["exact"] * 3


def test_hybrid_rounds_down_and_takes_the_ratio_to_the_last_digit() -> None:
    assert layers(plan(settings("hybrid"), model(6), {"layers.5"})).count("dropped") == 2  # half of five
    assert layers(plan(settings("hybrid", drop_ratio=0.29), model(101), {"layers.5"})).count("dropped") == 29
    assert layers(plan(settings("hybrid", drop_ratio=0), model(6), {"layers.5"})).count("dropped") == 0


def test_ties_and_unknown_influence_go_by_model_order_and_unknown_ones_last() -> None:
    assert layers(plan(settings("hybrid"), model(5), {"layers.0"})) == ["exact", "dropped", "dropped", "exact", "exact"]
    unknown: list[float | None] = [None, None, 0.9, None, 0.9]
    assert layers(plan(settings("hybrid"), model(5, influence=unknown), {"layers.0"})) == ["exact", "exact", "dropped", "exact", "dropped"]


@given(
    st.sampled_from(["none", "hybrid", "int8", "int4", "auto"]),
    st.integers(1, 9),
    st.sets(st.integers(0, 8)),
    st.sets(st.integers(0, 8), min_size=0),
    st.floats(0, 0.9),
    st.lists(st.one_of(st.none(), st.floats(-1, 2)), min_size=9, max_size=9),
    st.integers(0, 40_000),
)
def test_what_holds_for_every_policy(
    policy: str,
    number: int,
    updated: set[int],
    trained: set[int],
    ratio: float,
    influence: list[float | None],
    allowed: int,
) -> None:
    blocks = model(number, tuple(updated), influence)
    names = {f"layers.{i}" for i in trained if i < number} | {"head"}
    for budget in (None, AgentLimits(memory_bytes=allowed)):
        chosen = plan(settings(policy, drop_ratio=ratio), blocks, names, budget, COSTS)
        closest = chosen.plan if isinstance(chosen, DoesNotFit) else chosen
        assert list(closest) == [b.name for b in blocks], "every block, in model order"
        assert all(closest[name] == "exact" for name in names)
        assert not any(closest[b.name] == "dropped" for b in blocks if b.version > 0 or b.kind != "layer")
        assert not all(codec == "dropped" for name, codec in closest.items() if name.startswith("layers."))
        assert chosen == plan(settings(policy, drop_ratio=ratio), blocks, names, budget, COSTS)
        if budget is not None:
            assert isinstance(chosen, DoesNotFit) == (size(closest) > allowed)


def test_auto_takes_int8_where_it_fits() -> None:
    blocks = model(4, influence=[0.1, 0.4, 0.2, 0.3])
    all_int8 = plan(settings("int8"), blocks, {"layers.1"})
    assert plan(settings(), blocks, {"layers.1"}) == all_int8
    assert not isinstance(all_int8, DoesNotFit)
    assert plan(settings(), blocks, {"layers.1"}, AgentLimits(size(all_int8), size(all_int8)), COSTS) == all_int8


def test_auto_goes_down_one_step_at_a_time_least_influence_first() -> None:
    blocks = model(4, updated=(0,), influence=[0.1, 0.4, 0.2, 0.3])
    found = [layers(step) for step in auto_ladder(settings(drop_ratio=0.5), blocks, {"layers.1"})]
    assert found == [
        ["int8", "exact", "int8", "int8"],
        ["int4", "exact", "int8", "int8"],
        ["int4", "exact", "int4", "int8"],
        ["int4", "exact", "int4", "int4"],
        # Pruning by a quarter would make an int4 block larger. layers.0 was updated; half of the other two may go.
        ["int4", "exact", "dropped", "int4"],
    ]
    assert "pruned:90" in {c for step in auto_ladder(settings(prune_ratio=0.9), blocks, {"layers.1"}) for c in step.values()}


def test_auto_takes_the_first_step_that_fits_memory_and_download() -> None:
    blocks = model(4, influence=[0.1, 0.4, 0.2, 0.3])
    steps = list(auto_ladder(settings(), blocks, {"layers.1"}))
    for step in steps:
        assert plan(settings(), blocks, {"layers.1"}, AgentLimits(memory_bytes=size(step)), COSTS) == step
        assert plan(settings(), blocks, {"layers.1"}, AgentLimits(10**9, size(step)), COSTS) == step


def test_what_does_not_fit_says_by_how_much() -> None:
    blocks = model(4, influence=[0.1, 0.4, 0.2, 0.3])
    least = min(size(step) for step in auto_ladder(settings(), blocks, {"layers.1"}))
    answer = plan(settings(), blocks, {"layers.1"}, AgentLimits(memory_bytes=least - 7, download_bytes=least - 20), COSTS)
    assert isinstance(answer, DoesNotFit)
    assert (answer.missing_memory_bytes, answer.missing_download_bytes) == (7, 20)
    assert "of memory are missing" in answer.reason
    assert "of download are missing" in answer.reason
    fixed = plan(settings("none"), blocks, {"layers.1"}, AgentLimits(memory_bytes=1000), COSTS)
    assert isinstance(fixed, DoesNotFit)
    assert fixed.missing_memory_bytes == size(fixed.plan) - 1000


def test_a_plan_under_the_floor_goes_up_rung_by_rung() -> None:
    run = settings("hybrid", floor=0.9)
    chosen = plan(run, model(4, updated=(0,)), {"layers.3"})
    assert layers(chosen) == ["pruned:25", "dropped", "exact", "exact"]
    known: dict[str, float] = {}
    seen = []
    while (key := plan_key(chosen)) not in known:  # type: ignore[arg-type]
        seen.append(layers(chosen)[:2])
        known[key] = 0.2 if key != "exact" else 1.0
        chosen = plan(run, model(4, updated=(0,)), {"layers.3"}, fidelity=known)
    assert seen == [["pruned:25", "dropped"], ["pruned:25", "pruned:25"], ["int4", "int4"], ["int8", "int8"], ["exact", "exact"]]


def test_only_the_worst_blocks_go_up() -> None:
    run = settings("int4", floor=0.9)
    mixed = {"embeddings": "int8", "layers.0": "int4", "layers.1": "pruned:25", "layers.2": "exact", "head": "exact"}
    assert apply_floor(run, mixed, 0.5) == mixed | {"layers.1": "int4"}
    assert apply_floor(run, apply_floor(run, mixed, 0.5), 0.5) == mixed | {"layers.0": "int8", "layers.1": "int8"}


def test_a_faithful_plan_and_an_unmeasured_one_stay() -> None:
    chosen = plan(settings("int4"), model(), {"head"})
    assert not isinstance(chosen, DoesNotFit)
    assert plan(settings("int4", floor=0.9), model(), {"head"}, fidelity={plan_key(chosen): 0.9}) == chosen
    assert plan(settings("int4", floor=0.9), model(), {"head"}, fidelity={"another": 0.1}) == chosen
    assert apply_floor(settings("int4"), chosen, -1.0) == chosen, "without a floor everything passes"


def test_refused_under_the_floor_by_name() -> None:
    run = settings("int4", floor=0.9, below_floor="refuse")
    chosen = plan(run, model(), {"head"})
    assert not isinstance(chosen, DoesNotFit)
    with pytest.raises(FidelityTooLow, match=r"0\.850 .* floor of 0\.9") as error:
        plan(run, model(), {"head"}, fidelity={plan_key(chosen): 0.85})
    assert error.value.code == "fidelity_below_floor"
    with pytest.raises(FidelityTooLow, match="nothing in it is compressed"):
        apply_floor(settings(floor=0.9), {"a": "exact"}, 0.1)


def test_auto_never_goes_under_the_floor() -> None:
    blocks = model(4, influence=[0.1, 0.4, 0.2, 0.3])
    steps = list(auto_ladder(settings(), blocks, {"layers.1"}))
    low = {plan_key(steps[2]): 0.5}
    answer = plan(settings(floor=0.9), blocks, {"layers.1"}, AgentLimits(memory_bytes=size(steps[2])), COSTS, low)
    assert isinstance(answer, DoesNotFit)
    assert answer.plan == steps[1], "the last plan that is faithful enough"
    assert "fidelity floor" in answer.reason
    assert plan(settings(floor=0.4), blocks, {"layers.1"}, AgentLimits(memory_bytes=size(steps[2])), COSTS, low) == steps[2]
    # int8 itself is under the floor: exact is left, for who has room for it.
    low = {plan_key(steps[0]): 0.5}
    assert set(plan(settings(floor=0.9), blocks, {"layers.1"}, None, None, low).values()) == {"exact"}  # type: ignore[union-attr]
    assert isinstance(plan(settings(floor=0.9), blocks, {"layers.1"}, AgentLimits(size(steps[0])), COSTS, low), DoesNotFit)


def test_a_plan_has_a_short_name() -> None:
    chosen = {
        "embeddings": "int8", "layers.0": "int4", "layers.1": "int4", "layers.2": "exact", "layers.3": "int4", "layers.10": "dropped",
        "layers.11": "pruned:25", "norm": "int8", "head": "int8",
    }  # fmt: skip
    assert plan_key(chosen) == "dropped:layers.10,pruned:25:layers.11,int4:layers.0-1+layers.3,int8:embeddings+norm+head"
    assert plan_key({"layers.0-1": "int8", "layers.2-3": "int8", "layers.4-5": "int4"}) == "int4:layers.4-5,int8:layers.0-3"
    assert plan_key({"embeddings": "exact"}) == "exact"


@given(st.lists(st.sampled_from(["exact", "int8", "int4", "pruned:25", "pruned:26", "dropped"]), min_size=7, max_size=7), st.data())
def test_different_plans_have_different_names(chosen: list[str], data: st.DataObject) -> None:
    names = ["embeddings", *(f"layers.{i}" for i in range(5)), "head"]
    other = data.draw(st.permutations(chosen))
    one, two = dict(zip(names, chosen, strict=True)), dict(zip(names, other, strict=True))
    assert (plan_key(one) == plan_key(two)) == (one == two)


@pytest.mark.parametrize("wrong", [{"drop_ratio": 0.91}, {"drop_ratio": -0.1}, {"prune_ratio": 0.0}, {"prune_ratio": 0.95}, {"floor": 1.1}])
def test_ratios_out_of_range_are_named(wrong: dict[str, float]) -> None:
    run = settings("hybrid").model_copy(update=wrong)
    with pytest.raises(CompressionInvalid, match=next(iter(wrong))):
        plan(run, model(), {"head"})


def test_the_codec_of_a_ratio() -> None:
    assert [pruned_codec(r) for r in (0.01, 0.25, 0.29, 0.9)] == ["pruned:1", "pruned:25", "pruned:29", "pruned:90"]
