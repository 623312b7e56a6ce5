"""The plan of a run before it begins: sizes from shapes, blocks as they will be, what each agent fetches, and who is left out."""

import math
from typing import Any

import pytest
import torch

from fedcybgd.coordinator.domain import compression
from fedcybgd.coordinator.domain.compression import BlockFacts, DoesNotFit
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.planning.forecast import AgentFacts, Forecast, forecast
from fedcybgd.coordinator.planning.memory import estimate
from fedcybgd.coordinator.planning.shapes import GROUP, MIN_NUMEL, MIN_ROW, BlockShape, ModelShape, blocks_of_run, delta_bytes, shard_bytes
from fedcybgd.coordinator.planning.traffic import Movement, packed_bytes, simulate
from fedcybgd.shared.contract.adapters import AdaptersRefused
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.tensors import codecs, quantized

CONFIG = {"model_type": "bert", "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 1000}
MODEL = ModelShape.of(CONFIG)


def shapes(layers: int = 4, itemsize: int = 4) -> list[BlockShape]:
    layer = {f"{n}.weight": (64, 64) for n in "qkvo"} | {"up.weight": (256, 64), "down.weight": (64, 256), "norm": (64,)}
    return [
        BlockShape("embeddings", "embeddings", {"word.weight": (1000, 64)}, itemsize),
        *(BlockShape(f"layers.{i}", "layer", {f"{i}.{n}": s for n, s in layer.items()}, itemsize) for i in range(layers)),
        BlockShape("pooler", "pooler", {"pooler.weight": (64, 64), "pooler.bias": (64,)}, itemsize),
    ]


def run(**changes: Any) -> RunFile:
    values: dict[str, Any] = {
        "name": "r", "model": "m", "task": {"kind": "text-classification", "labels": 3, "max_length": 16},
        "schedule": {"blocks": ["layers"], "always": ["pooler", "head"]}, "train": {"steps": 2, "batch_size": 2},
    }  # fmt: skip
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return RunFile.model_validate(values)


def plan(*agents: AgentFacts, files: int = 0, rows: int | None = None, speed: float | None = None, **changes: Any) -> Forecast:
    spec = run(**changes)
    model_blocks, visited = blocks_of_run(spec, CONFIG, shapes())
    return forecast(spec, MODEL, model_blocks, visited, agents or (AgentFacts("a"), AgentFacts("b")), files, speed, rows)


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
@pytest.mark.parametrize("shape", [(100, 64), (8, 200), (3, 33, 65), (64,), (10, 10), (2000, 15)])
def test_sizes_of_shards_are_those_of_the_encoder(codec: str, shape: tuple[int, ...], tmp_path: Any) -> None:
    from fedcybgd.coordinator.engine.encode import ShardEncoder
    from fedcybgd.coordinator.engine.shards import from_tensor, write_shard
    from fedcybgd.coordinator.storage import open_store

    store = open_store(tmp_path)
    exact, size = write_shard(store, [from_tensor("w", shape, torch.float32, lambda: torch.randn(shape))])
    if codec != "exact":
        size = ShardEncoder(store, None, None).encode(exact, codec).size
    assert shard_bytes(BlockShape("layers.0", "layer", {"w": shape}), codec, MODEL) == size


def test_the_rules_of_the_codecs_are_the_same_as_in_shared() -> None:
    assert (GROUP, MIN_NUMEL, MIN_ROW) == (quantized.GROUP, codecs.MIN_NUMEL, codecs.MIN_ROW)


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8", "int4"])
def test_sizes_of_deltas_are_those_of_the_agent(codec: str, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    from fedcybgd.shared.tensors.deltas import encode_delta

    shapes_ = {"w": (100, 64), "odd": (20, 33), "bias": (64,)}
    save_file(dict(encode_delta({n: torch.randn(s) for n, s in shapes_.items()}, codec)), tmp_path / "delta", {"codec": codec})
    expected = delta_bytes([BlockShape("layers.0", "layer", shapes_)], codec)
    assert expected == pytest.approx((tmp_path / "delta").stat().st_size, abs=128), "headers are padded otherwise"


def test_what_is_known_is_not_estimated() -> None:
    block = BlockShape("layers.0", "layer", {"w": (64, 64)}, sizes={"int8": (5000, 4000)})
    assert (shard_bytes(block, "int8", MODEL), packed_bytes(block, "int8", MODEL)) == (5000, 4000)
    assert packed_bytes(block, "dropped", MODEL) == 0
    assert shard_bytes(block, "pruned:50", MODEL) < shard_bytes(block, "exact", MODEL)


# ---- blocks ---------------------------------------------------------------------------------------------------------


def test_blocks_are_those_that_a_run_will_have() -> None:
    found, visited = blocks_of_run(run(schedule={"layers_per_block": 3, "blocks": ["all"]}), CONFIG, shapes())
    assert [b.name for b in found] == ["embeddings", "layers.0-2", "layers.3", "pooler", "head"]
    assert visited == ["embeddings", "layers.0-2", "layers.3"]
    assert found[1].num_parameters == 3 * found[2].num_parameters
    assert found[-1].tensors == {"classifier.weight": (3, 64), "classifier.bias": (3,)}


def test_a_classifier_has_a_pooler_also_where_the_model_was_saved_without() -> None:
    found, _ = blocks_of_run(run(), CONFIG, shapes()[:-1])
    assert [(b.name, b.num_parameters) for b in found][-2:] == [("pooler", 64 * 64 + 64), ("head", 3 * 64 + 3)]
    with pytest.raises(Invalid, match="`always` names pooler"):
        blocks_of_run(run(), {**CONFIG, "model_type": "roberta"}, shapes()[:-1])


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(Invalid, match="`always` names tail"):
        blocks_of_run(run(schedule={"always": ["tail"]}), CONFIG, shapes())
    with pytest.raises(PartitionError, match="cuts through"):
        blocks_of_run(run(schedule={"blocks": ["layers.1"], "layers_per_block": 2}), CONFIG, shapes())


# ---- bytes ----------------------------------------------------------------------------------------------------------


def fetched(spec: RunFile, agents: list[str], rounds: int, files: int = 0) -> list[tuple[str, str, int]]:
    found, visited = blocks_of_run(spec, CONFIG, shapes())
    int8 = {b.name: "int8" for b in found}

    def plan_for(_agent: str, _blocks: object, trained: Any) -> dict[str, str]:
        return int8 | dict.fromkeys(trained, "exact")

    return [(t.agent, t.blocks[0], t.down) for t in simulate(spec, MODEL, found, visited, agents, rounds, files, plan_for, int8)]


def test_the_first_visit_brings_all_and_later_ones_what_changed() -> None:
    spec = run(schedule={"cycles": 2, "always": []})
    one = fetched(spec, ["a"], 8, files=1000)
    found, _ = blocks_of_run(spec, CONFIG, shapes())
    first = 1000 + sum(packed_bytes(b, "exact" if b.name == "layers.0" else "int8", MODEL) for b in found)
    assert one[0] == ("a", "layers.0", first)
    # layers.1 exact, and what it trained itself as int8: a patch to the version that it has in no codec but exact.
    whole = {b.name: packed_bytes(b, "int8", MODEL) for b in found}
    assert one[1][2] == packed_bytes(found[2], "exact", MODEL) + whole["layers.0"]
    # In the second cycle its own delta makes the exact block, for nothing; what is frozen comes as patches.
    assert one[4][2] < whole["layers.3"] * 1.1
    assert all(later[2] < first for later in one[1:])


def test_own_deltas_are_not_fetched_and_those_of_others_are() -> None:
    spec = run(schedule={"cycles": 2, "always": [], "blocks": ["layers.0"]})
    alone, both = fetched(spec, ["a"], 2), fetched(spec, ["a", "b"], 2)
    assert alone[1][2] == 0, "it holds the block, and the delta that was added to it"
    assert both[1][0] == "b"
    assert both[1][2] > 0


def test_a_delta_over_many_blocks_is_no_patch_for_a_small_one() -> None:
    spec = run(schedule={"cycles": 1})
    found, _ = blocks_of_run(spec, CONFIG, shapes())
    pooler = packed_bytes(found[-2], "exact", MODEL)
    assert Movement.of(spec, MODEL, None).delta([found[1], *found[-2:]]) > pooler
    assert fetched(spec, ["a"], 2)[1][2] >= packed_bytes(found[2], "exact", MODEL) + pooler


def test_a_delta_that_is_a_step_of_several_blocks_is_fetched_once() -> None:
    """Of two agents in turn each gets the other's delta, over the visited layer and the one that is always trained, once for both."""
    spec = run(
        schedule={"blocks": ["layers.0-2"], "always": ["layers.3"]},
        compression={"policy": "none", "delta_patches": True},
        delta={"codec": "int4"},
    )
    found, visited = blocks_of_run(spec, CONFIG, shapes())
    exact = {b.name: "exact" for b in found}
    visits = list(simulate(spec, MODEL, found, visited, ["a", "b"], 3, 0, lambda *_: exact, exact))
    assert [visit.down for visit in visits[:2]] == [sum(packed_bytes(b, "exact", MODEL) for b in found)] * 2
    assert visits[2].down == visits[1].up, "layers.1 and layers.3, by the one delta of b"
    assert visits[2].fresh == visits[2].down


def test_more_training_makes_larger_patches() -> None:
    block = shapes()[1]
    sizes = [
        Movement.of(run(train={"steps": steps, "learning_rate": rate}), MODEL, None).difference(block, "int8", 1.0, MODEL)
        for steps, rate in ((2, 1e-4), (200, 1e-4), (200, 1e-3))
    ]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < shard_bytes(block, "int8", MODEL)


# ---- agents ---------------------------------------------------------------------------------------------------------


def test_cycles_beyond_the_simulated_ones_are_like_the_last() -> None:
    short, long = plan(schedule={"cycles": 20}), plan(schedule={"cycles": 2000})
    assert long.rounds == 100 * short.rounds
    for few, many in zip(short.agents, long.agents, strict=True):
        assert few.later_cycle == many.later_cycle
        assert many.whole_run.up == pytest.approx(100 * few.whole_run.up, rel=0.01)
        assert few.first_cycle.down > few.later_cycle.down  # type: ignore[union-attr]


def test_hours_are_tokens_over_speed_and_bytes_over_the_line() -> None:
    fast = AgentFacts("a", bytes_per_s=1_000_000)
    found = plan(fast, speed=50.0)
    (only,) = found.agents
    assert only.training_hours == pytest.approx(4 * 2 * 2 * 16 / 50 / 3600)
    assert only.transfer_hours == pytest.approx((only.whole_run.down + only.whole_run.up) / 1e6 / 3600)
    assert found.hours == pytest.approx(only.training_hours + only.transfer_hours)
    assert plan(fast).hours is None
    assert plan(fast, speed=50.0, train={"steps": None, "epochs": 2.0}).hours is None, "rows are not known"
    assert plan(fast, speed=50.0, rows=10, train={"steps": None, "epochs": 2.0}).agents[0].training_hours == pytest.approx(
        4 * 2 * 10 * 16 / 50 / 3600
    )


def test_who_has_too_little_memory_is_left_out_and_its_visits_are_named() -> None:
    small = AgentFacts("b", memory_bytes=100_000_000)
    found = plan(AgentFacts("a"), small)
    assert [a.why_not is None for a in found.agents] == [True, False]
    code, why = found.agents[1].why_not or ("", "")
    assert code == "memory_limit"
    assert "of memory are missing" in why
    assert {v.blocks for v in found.agents[1].visits} == {("layers.1",), ("layers.3",)}
    assert found.problems == ["no agent can train layers.1, layers.3 within its limits"]


def test_the_memory_of_the_device_counts_where_no_limit_is_declared() -> None:
    assert plan(AgentFacts("a", device_bytes=100_000_000)).agents[0].why_not is not None
    assert plan(AgentFacts("a", memory_bytes=10**10, device_bytes=100_000_000)).agents[0].why_not is None


def test_a_slow_line_is_a_reason_and_auto_sends_less() -> None:
    found, _ = blocks_of_run(run(), CONFIG, shapes())
    whole = sum(packed_bytes(b, "exact" if b.name in ("layers.0", "pooler", "head") else "int8", MODEL) for b in found)
    slow = AgentFacts("a", bytes_per_s=math.ceil(whole / 300) - 100)
    code, why = plan(slow).agents[0].why_not or ("", "")
    assert (code, "of download are missing" in why) == ("nothing_fits", True)
    auto = plan(slow, compression={"policy": "auto"}).agents[0]
    assert auto.why_not is None
    assert "int4" in auto.visits[0].codecs


def test_a_small_disk_is_a_reason_by_its_name_and_auto_keeps_less_on_it() -> None:
    found, _ = blocks_of_run(run(), CONFIG, shapes())
    kept = sum(shard_bytes(b, "exact" if b.name in ("layers.0", "pooler", "head") else "int8", MODEL) for b in found)
    enough, short = plan(AgentFacts("a", disk_bytes=kept)), plan(AgentFacts("a", disk_bytes=kept - 1))
    assert (enough.agents[0].why_not, enough.agents[0].disk) == (None, kept)
    code, why = short.agents[0].why_not or ("", "")
    assert code == "disk_limit"
    assert "of disk (limits.disk_gb) are missing" in why
    auto = plan(AgentFacts("a", disk_bytes=kept - 1), compression={"policy": "auto"}).agents[0]
    assert auto.why_not is None
    assert "int4" in auto.visits[0].codecs


def test_who_does_not_take_part_is_said_and_the_others_share_the_visits() -> None:
    found = plan(AgentFacts("a"), AgentFacts("b", revoked=True), AgentFacts("c"), agents=["a", "b"])
    assert [a.why_not and a.why_not[0] for a in found.agents] == [None, "revoked", "not_in_run"]
    assert [v.blocks for v in found.agents[0].visits] == [("layers.0",), ("layers.1",), ("layers.2",), ("layers.3",)]
    assert plan(agents=["nobody"]).problems == [
        "these agents of the run file are not enrolled: nobody", "no agent is enrolled that could take part",
    ]  # fmt: skip


def test_the_code_of_a_reason_does_not_hang_on_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_reason", lambda *_: "too small, in other words")
    found = plan(AgentFacts("a", memory_bytes=1000), compression={"policy": "auto"})
    assert found.agents[0].why_not == ("memory_limit", "too small, in other words")


def test_an_exposure_budget_without_a_way_is_a_problem() -> None:
    found = plan(exposure={"max_exact_blocks": 3})
    assert "max_exact_blocks" in found.problems[0]
    assert {a.why_not and a.why_not[0] for a in found.agents} == {"exposure_budget"}


def test_auto_has_a_budget_and_costs_for_the_blocks_of_a_run() -> None:
    from fedcybgd.coordinator.db.models import Agent, Block
    from fedcybgd.coordinator.domain.model_blocks import TensorShape
    from fedcybgd.coordinator.services.emulators.costing import costs_for

    spec = run(compression={"policy": "auto"})
    rows = [
        Block(
            name=b.name, kind=b.kind, version=0, changes=0, digest=b.name, size=4 * b.num_parameters, num_parameters=b.num_parameters, influence=None,
            tensors=[TensorShape(name=n, shape=list(s)) for n, s in b.tensors.items()],
        )
        for b in blocks_of_run(spec, CONFIG, shapes())[0]
    ]  # fmt: skip
    trained = {"layers.0", "pooler", "head"}
    facts = [BlockFacts(b.name, b.kind, b.num_parameters) for b in rows]

    def chosen(limits: dict[str, int]) -> compression.Plan | DoesNotFit:
        agent = Agent(name="a", state="active", device=DeviceInfo(memory_bytes=10**9), limits=DeclaredLimits(**limits))
        return compression.plan(spec.compression, facts, trained, *costs_for(spec, CONFIG, rows, trained, agent))

    free = chosen({})
    assert isinstance(free, dict)
    assert {free[b.name] for b in rows if b.name not in trained} == {"int8"}
    budget, costs = costs_for(spec, CONFIG, rows, trained, None)
    assert (budget.memory_bytes, budget.download_bytes) == (None, None)
    slow = chosen({"bytes_per_s": (costs.download(free) - 3000) // 300, "memory_bytes": 0})
    assert isinstance(slow, dict)
    assert "int4" in slow.values()
    assert isinstance(chosen({"memory_bytes": 1000}), DoesNotFit)


def test_waves_shorten_the_run() -> None:
    strict, wave = plan(speed=50.0), plan(speed=50.0, schedule={"wave": 2})
    assert wave.rounds == strict.rounds / 2
    assert wave.hours == pytest.approx((strict.hours or 0) / 2)


def test_a_visit_of_a_whole_model_takes_what_all_its_blocks_take_together() -> None:
    agents = [AgentFacts(name) for name in "abcd"]
    cycle, averaged = (plan(*agents, speed=50.0, schedule={"cycles": 8}, compression={"policy": "none"}, **more)
                       for more in ({}, {"method": "whole", "whole": {"fraction": 0.5}}))  # fmt: skip
    assert (cycle.rounds, averaged.rounds) == (32, 8)
    assert {v.blocks for a in averaged.agents for v in a.visits} == {("layers.0", "layers.1", "layers.2", "layers.3")}
    assert sum(a.visits_per_cycle for a in averaged.agents) == 2
    assert averaged.hours == pytest.approx((cycle.hours or 0) / 4), "two at once, with one visit where there were four"
    one, all_of_it = (max(v.memory.parts["moments"] for a in f.agents for v in a.visits if v.memory) for f in (cycle, averaged))
    layer, along = (sum(b.num_parameters for b in shapes() if b.kind == kind) for kind in ("layer", "pooler"))
    assert all_of_it - one == 8 * (layer - layer // 4)
    assert one > 8 * (layer // 4 + along)


def test_a_visit_of_adapters_takes_what_their_factors_take_and_little_is_moved() -> None:
    agents, schedule = [AgentFacts(name) for name in "ab"], {"schedule": {"cycles": 3, "blocks": ["adapters"]}}
    whole = plan(*agents, method="whole", schedule={"cycles": 3}, compression={"policy": "none"})
    found = plan(*agents, method="adapters", adapters={"rank": 4}, **schedule)
    assert {v.blocks for a in found.agents for v in a.visits} == {("adapters",)}
    [visit] = found.agents[0].visits
    assert visit.codecs == {"exact": ["pooler", "head", "adapters"], "int8": ["embeddings", "layers.0", "layers.1", "layers.2", "layers.3"]}
    factors = 4 * 4 * (4 * (64 + 64) + 2 * (64 + 256))
    along = 64 * 64 + 64 + 3 * 64 + 3
    assert visit.memory is not None
    assert visit.memory.parts["moments"] == 8 * (factors + along)
    [upper] = plan(*agents, method="adapters", adapters={"rank": 4, "matrices": ["3.*"]}, **schedule).agents[0].visits
    assert upper.memory is not None
    assert visit.memory.parts["activations"] > 3 * upper.memory.parts["activations"] > 0, "gradients come down to the lowest adapter"
    later, all_of_it = found.agents[0].later_cycle, whole.agents[0].later_cycle
    assert later is not None
    assert all_of_it is not None
    assert 4 * (later.down + later.up) < all_of_it.down + all_of_it.up
    exact = plan(*agents, method="adapters", adapters={"rank": 4, "combine": "exact"}, **schedule).agents[0].later_cycle
    assert exact is not None
    assert (exact.up, exact.down > later.down) == (later.up, True), "matrices that take up what the mean leaves out are fetched anew"
    handed = plan(*agents, method="adapters", adapters={"rank": 4, "combine": "handed"}, **schedule)
    assert sum(a.visits_per_cycle for a in handed.agents) == 1
    assert plan(method="adapters", adapters={"rank": 4, "matrices": ["q"]}, **schedule).agents[0].visits[0].up < visit.up


@pytest.mark.parametrize("layers", ["all", "above"])
def test_corrections_are_counted_in_memory_and_in_what_moves_both_ways(layers: str) -> None:
    schedule: dict[str, Any] = {"schedule": {"blocks": ["layers"], "cycles": 2}, "compression": {"policy": "int8"}}
    plain, expanded = run(**schedule), run(**schedule, corrections={"rank": 4, "layers": layers})
    found, _ = blocks_of_run(plain, CONFIG, shapes())
    int8 = {b.name: "int8" for b in found}
    kept = []
    for number in range(4):
        trained = [f"layers.{number}"]
        memory = [estimate(spec, MODEL, found, int8 | dict.fromkeys(trained, "exact"), trained) for spec in (plain, expanded)]
        parts, more = (max(m.parts["weights"] for m in memory[i:]) for i in (0, 1))
        factors = 4 * (4 * (64 + 64) + 2 * (64 + 256)) * (3 if layers == "all" else 3 - number)
        assert parts == more == memory[0].parts["weights"] + 4 * factors
        kept.append(memory[1].parts["activations"] - memory[0].parts["activations"])
    assert kept == sorted(kept) if layers == "all" else kept[-1] == 0, (
        "the higher the visited layer, the more is passed that was not before"
    )
    one, other = (plan(**schedule, **more).agents[0].later_cycle for more in ({}, {"corrections": {"rank": 4, "layers": layers}}))
    assert one is not None
    assert other is not None
    assert (other.down > one.down, other.up > one.up) == (True, True), "layers change that were not visited"


@pytest.mark.parametrize(
    ("adapters", "says"),
    [({"rank": 65}, r"adapters\.rank is 65, .*: 64 at the most"), ({"matrices": ["linear", "qkv"]}, r"adapters\.matrices: 'qkv' .* are q, k, v, o, up, down")],
)  # fmt: skip
def test_adapters_that_a_model_has_no_place_for_are_refused(adapters: dict[str, Any], says: str) -> None:
    with pytest.raises(AdaptersRefused, match=says):
        plan(method="adapters", adapters=adapters, schedule={"blocks": ["adapters"]})
    bare = [BlockShape(b.name, b.kind, {n: s for n, s in b.tensors.items() if "." not in n[2:]}) for b in shapes()]
    with pytest.raises(AdaptersRefused, match=r"adapters\.matrices: .* no linear matrix"):
        blocks_of_run(run(method="adapters", schedule={"blocks": ["adapters"]}), CONFIG, bare)


def test_who_cannot_hold_a_whole_model_is_left_out_with_the_bytes_that_are_missing() -> None:
    needed = plan(AgentFacts("a"), method="whole").agents[0].memory_needed
    found = plan(AgentFacts("a", memory_bytes=needed), AgentFacts("b", memory_bytes=needed - 1000), method="whole")
    assert [a.why_not[0] if a.why_not else None for a in found.agents] == [None, "memory_limit"]
    assert found.problems == []
    alone = plan(AgentFacts("b", memory_bytes=needed - 1000), method="whole")
    assert alone.problems == ["no agent can train layers.0, layers.1, layers.2, layers.3 within its limits"]
    assert [(v.blocks, v.memory) for v in alone.agents[0].visits] == [(("layers.0", "layers.1", "layers.2", "layers.3"), None)]


@pytest.mark.parametrize("policy", ["int8", "none"])
def test_agents_that_are_alike_are_reckoned_once(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No estimate is made twice, whoever it is for and in whatever cycle; each agent still gets its own forecast."""
    asked: list[Any] = []

    def noted(*arguments: Any) -> Any:
        plan, trained, *facts = arguments[3:]
        if len(facts) == 3:  # of a visit: what a plan would cost is asked for before
            asked.append((frozenset(plan.items()), frozenset(trained), *facts))
        return estimate(*arguments)

    monkeypatch.setattr("fedcybgd.coordinator.planning.forecast.estimate", noted)
    agents = [AgentFacts(f"a{i:02}", memory_bytes=8 << 30 if i % 2 else 0) for i in range(40)]
    found = plan(*agents, schedule={"cycles": 30}, compression={"policy": policy})
    assert [a.agent for a in found.agents] == agents
    assert sum(a.visits_per_cycle for a in found.agents) == pytest.approx(len(found.visited))
    assert len(asked) == len(set(asked)) == 2 * len(found.visited)
