"""A pruned layer is narrower by what was asked, without the units that weigh least, and computes what is left of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.models.assembly import Assembled, AssemblyError
from fedcybgd.shared.models.pruning import UnitGroup, groups, kept, prune_block
from fedcybgd.shared.tensors.codecs import CodecError
from tests.support.families import (  # fmt: skip
    DECODER,
    EVERY_FAMILY,
    FAMILIES,
    GROUPED,
    assembled_of,
    logits_of,
    make,
    randomised,
    tensors_by_block,
)

CHANGED = "layers.1"
ONE_GROUP = ("llama-tied", "llama-untied", "llama-classifier", "mistral", "qwen2")
"""Families whose small models have a single key-value group."""
GROUPED_MODELS = {
    "llama-tied": make("LlamaConfig", "LlamaForCausalLM", **GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "mistral": make("MistralConfig", "MistralForCausalLM", **GROUPED, tie_word_embeddings=False),
    "qwen2": make("Qwen2Config", "Qwen2ForCausalLM", **GROUPED, tie_word_embeddings=True),
}
MODELS = EVERY_FAMILY | {f"{family}, grouped": (EVERY_FAMILY[family][0], made) for family, made in GROUPED_MODELS.items()}
every_model = pytest.mark.parametrize("name", MODELS)


def model_of(name: str, layers: int = 3) -> Any:
    return randomised(MODELS[name][1](layers))


def family_of(name: str) -> str:
    return name.partition(",")[0]


def layer_of(model: Any, index: int) -> nn.Module:
    return Assembled(model).layers[index]


def groups_of(model: Any) -> dict[str, UnitGroup]:
    return {group.kind: group for group in groups(layer_of(model, 1), model)}


def test_how_many_stay() -> None:
    assert [kept(12, percent) for percent in (1, 10, 25, 50, 90)] == [12, 11, 9, 6, 1]
    assert kept(2, 25) == 2  # 1.5 is rounded up
    assert kept(1, 90) == 1
    assert kept(3072, 25) == 2304


@pytest.mark.parametrize("percent", [0, 91, 100, -1])
def test_a_percentage_out_of_range_is_refused(percent: int) -> None:
    model = model_of("bert", 2)
    tensors = tensors_by_block(model)[CHANGED]
    with pytest.raises(CodecError, match="out of range"):
        prune_block(model, tensors, percent)


@every_model
def test_what_can_be_taken_out(name: str) -> None:
    model = model_of(name, 2)
    found = groups_of(model)
    width = {"gpt2": 64, "gpt2-classifier": 64, "bloom": 64}.get(
        name, 24 if "hidden_size" not in vars(model.config) or model.config.hidden_size == 16 else 40
    )
    assert found["neurons"].units == width
    if name == "bloom" or name in ONE_GROUP:
        assert "heads" not in found
    else:
        settings = model.config
        assert found["heads"].units == getattr(settings, "num_key_value_heads", settings.num_attention_heads)


@every_model
@pytest.mark.parametrize("percent", [25, 50])
def test_taking_out_what_is_zero_changes_nothing(name: str, percent: int) -> None:
    model = model_of(name)
    tensors = tensors_by_block(model)[CHANGED]
    layer = layer_of(model, 1)
    generator = torch.Generator().manual_seed(3)
    for group in groups_of(model).values():
        gone = torch.randperm(group.units, generator=generator)[kept(group.units, percent) :].sort().values
        with torch.no_grad():
            for cut in group.cuts:
                layer.get_parameter(cut.name).index_fill_(cut.dim, cut.indices(gone), 0.0)
    assembled = assembled_of(family_of(name), model)
    tensors = tensors_by_block(model)[CHANGED]
    narrow = prune_block(model, tensors, percent)
    assert sum(t.numel() for t in narrow.values()) < 0.9 * sum(t.numel() for t in tensors.values())
    assembled.put_pruned(narrow)
    with torch.no_grad():
        assert torch.allclose(logits_of(assembled.model), logits_of(model), atol=1e-6, rtol=0)
        # It would not be so if what is left were not where it belongs.
        assembled.put_pruned({name: t.flip(0) for name, t in narrow.items()})
        assert not torch.allclose(logits_of(assembled.model), logits_of(model), atol=1e-6, rtol=0)


@every_model
def test_eager_attention_works_when_pruned_too(name: str) -> None:
    model = model_of(name)
    narrow = prune_block(model, tensors_by_block(model)[CHANGED], 50)
    wanted, eager = assembled_of(family_of(name), model), assembled_of(family_of(name), model)
    eager.model.set_attn_implementation("eager")  # type: ignore[operator]
    wanted.put_pruned(narrow)
    eager.put_pruned(narrow)
    with torch.no_grad():
        assert torch.allclose(logits_of(eager.model), logits_of(wanted.model), atol=1e-5)


def test_every_layer_of_a_block_loses_its_own_least_ones() -> None:
    model = model_of("llama-tied, grouped")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3:13] *= 0.01
        model.model.layers[1].mlp.up_proj.weight[20:30] *= 0.01
    tensors = tensors_by_block(model, 2)["layers.0-1"]
    narrow = prune_block(model, tensors, 25)
    for index, gone in enumerate([range(3, 13), range(20, 30)]):
        left = [i for i in range(40) if i not in gone]
        for part in ("gate_proj", "up_proj"):
            name = f"layers.{index}.mlp.{part}"
            assert torch.equal(narrow[f"{name}.weight"], tensors[f"{name}.weight"][left])
            assert torch.equal(narrow[f"{name}.bias"], tensors[f"{name}.bias"][left])
        name = f"layers.{index}.mlp.down_proj"
        assert torch.equal(narrow[f"{name}.weight"], tensors[f"{name}.weight"][:, left])
        assert torch.equal(narrow[f"{name}.bias"], tensors[f"{name}.bias"])


def test_a_key_value_group_goes_with_its_queries() -> None:
    model = model_of("llama-tied, grouped")
    attention = model.model.layers[1].self_attn  # 8 heads of 4 in 4 groups
    with torch.no_grad():
        attention.v_proj.weight[4:8] = 0
        attention.o_proj.weight[:, 8:16] *= 0.01
        attention.q_proj.weight[8:16] *= 0.01
    tensors = tensors_by_block(model)[CHANGED]
    narrow = prune_block(model, tensors, 25)
    queries, keys = [i for i in range(32) if not 8 <= i < 16], [i for i in range(16) if not 4 <= i < 8]
    name = "layers.1.self_attn"
    assert torch.equal(narrow[f"{name}.q_proj.weight"], tensors[f"{name}.q_proj.weight"][queries])
    assert torch.equal(narrow[f"{name}.q_proj.bias"], tensors[f"{name}.q_proj.bias"][queries])
    assert torch.equal(narrow[f"{name}.k_proj.weight"], tensors[f"{name}.k_proj.weight"][keys])
    assert torch.equal(narrow[f"{name}.v_proj.weight"], tensors[f"{name}.v_proj.weight"][keys])
    assert torch.equal(narrow[f"{name}.o_proj.weight"], tensors[f"{name}.o_proj.weight"][:, queries])


def test_the_fused_projection_of_gpt2_loses_queries_keys_and_values_of_a_head() -> None:
    model = model_of("gpt2")
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[:8] *= 0.001  # the first of two heads of 8
        model.transformer.h[1].attn.c_attn.weight[:, :8] *= 0.01
    tensors = tensors_by_block(model)[CHANGED]
    narrow = prune_block(model, tensors, 50)
    left = [*range(8, 16), *range(24, 32), *range(40, 48)]
    assert torch.equal(narrow["h.1.attn.c_attn.weight"], tensors["h.1.attn.c_attn.weight"][:, left])
    assert torch.equal(narrow["h.1.attn.c_attn.bias"], tensors["h.1.attn.c_attn.bias"][left])
    assert torch.equal(narrow["h.1.attn.c_proj.weight"], tensors["h.1.attn.c_proj.weight"][8:])
    assert torch.equal(narrow["h.1.attn.c_proj.bias"], tensors["h.1.attn.c_proj.bias"])


def test_the_same_units_go_however_many_threads_there_are() -> None:
    model = model_of("phi3")
    tensors = tensors_by_block(model)[CHANGED]
    threads = torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        try:
            found.append(prune_block(model, tensors, 25))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], found[1][name]) for name in tensors)
    alike = {name: torch.ones_like(t) for name, t in tensors.items()}
    assert {n: t.shape for n, t in prune_block(model, alike, 25).items()} == {n: t.shape for n, t in found[0].items()}


def test_dtypes_stay() -> None:
    model = model_of("bert").to(torch.bfloat16)
    assert {t.dtype for t in prune_block(model, tensors_by_block(model)[CHANGED], 25).values()} == {torch.bfloat16}


def pruned(name: str = "llama-tied, grouped") -> tuple[Assembled, dict[str, Tensor]]:
    model = model_of(name)
    return assembled_of(family_of(name), model), prune_block(model, tensors_by_block(model, 2)["layers.0-1"], 25)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"layers.0.mlp.up_proj.weight": (29, 32)}, r"layers\.0\.mlp\.up_proj\.weight has shape \[29, 32\] in the shard, \[30, 32\]"),
        ({"layers.1.self_attn.k_proj.weight": (13, 32)}, r"layers\.1\.self_attn\.k_proj\.weight has shape \[13, 32\]"),
        ({"layers.1.input_layernorm.weight": (31,)}, r"layers\.1\.input_layernorm\.weight has shape \[31\]"),
        ({"layers.0.mlp.gate_proj.weight": (0, 32)}, r"layers\.0\.mlp\.gate_proj\.weight"),
        ({"layers.0.mlp.gate_proj.weight": (41, 32)}, r"layers\.0\.mlp\.gate_proj\.weight"),
        ({"layers.0.mlp.gate_proj.weight": (30,)}, r"layers\.0\.mlp\.gate_proj\.weight"),
        ({"layers.0.mlp.gate_proj.weight": ()}, r"layers\.0\.mlp\.gate_proj\.weight"),
        ({"layers.0.self_attn.q_proj.weight": (20, 32)}, r"layers\.0\.self_attn\.q_proj\.weight"),
        ({"norm.weight": (32,)}, r"holds norm\.weight, which is not of a layer"),
        ({"layers.9.mlp.up_proj.weight": (30, 32)}, r"holds layers\.9\.mlp\.up_proj\.weight, which is not of a layer"),
    ],
)
def test_a_shard_of_other_shapes_is_refused_by_name(wrong: dict[str, tuple[int, ...]], says: str) -> None:
    assembled, narrow = pruned()
    before = [type(layer) for layer in assembled.layers]
    with pytest.raises(AssemblyError, match=says):
        assembled.put_pruned(narrow | {name: torch.zeros(shape) for name, shape in wrong.items()})
    assembled.check_complete()
    assert [type(layer) for layer in assembled.layers] == before
    assert not any(p.is_meta for p in assembled.model.parameters()), "what was refused has changed nothing"


@pytest.mark.parametrize("neurons", [0, 41])
def test_a_width_that_no_layer_can_have_is_refused(neurons: int) -> None:
    assembled, narrow = pruned()
    for name, tensor in narrow.items():
        shape = [neurons if size == 30 else size for size in tensor.shape]
        narrow[name] = torch.zeros(shape)
    with pytest.raises(AssemblyError, match=r"mlp\.gate_proj\.weight has shape"):
        assembled.put_pruned(narrow)


def test_layers_of_unlike_width_in_one_shard_are_refused() -> None:
    assembled, narrow = pruned()
    model = model_of("llama-tied, grouped")
    other = prune_block(model, tensors_by_block(model)["layers.1"], 50)
    with pytest.raises(AssemblyError, match=r"layers\.1\.\S+ has shape"):
        assembled.put_pruned(narrow | other)


def test_a_tensor_that_a_pruned_shard_lacks_is_named() -> None:
    assembled, narrow = pruned()
    del narrow["layers.1.mlp.up_proj.bias"]
    with pytest.raises(AssemblyError, match=r"lacks mlp\.up_proj\.bias of layer 1"):
        assembled.put_pruned(narrow)


def test_only_whole_layers_of_the_model_are_pruned() -> None:
    model = model_of("bert", 2)
    blocks = tensors_by_block(model)
    with pytest.raises(AssemblyError, match="only layers can be pruned"):
        prune_block(model, blocks["head"], 25)
    with pytest.raises(AssemblyError, match="layer 1 is not whole"):
        prune_block(model, dict(list(blocks["layers.1"].items())[1:]), 25)
    with pytest.raises(AssemblyError, match=r"encoder\.layer\.1\.\S+ has shape \[3\]"):
        prune_block(model, blocks["layers.1"] | {next(iter(blocks["layers.1"])): torch.zeros(3)}, 25)


def test_layers_that_are_not_alike_are_narrowed_each_for_itself() -> None:
    model = model_of("llama-tied", 2)
    for name in ("gate_proj", "up_proj"):
        setattr(model.model.layers[1].mlp, name, nn.Linear(16, 40, bias=False))
    model.model.layers[1].mlp.down_proj = nn.Linear(40, 16, bias=False)
    tensors = tensors_by_block(model, 2)["layers.0-1"]
    narrow = prune_block(model, tensors, 50)
    assert narrow["layers.0.mlp.up_proj.weight"].shape == (12, 16)
    assert narrow["layers.1.mlp.up_proj.weight"].shape == (20, 16)
    assembled = Assembled(model)
    assembled.put_pruned(narrow)
    assert assembled.layers[0].mlp.down_proj.in_features == 12
    assert assembled.layers[1].mlp.down_proj.in_features == 20
    assert torch.isfinite(logits_of(assembled.model)).all()


def test_an_mlp_of_an_unknown_form_is_refused() -> None:
    model = FAMILIES["llama-tied"][1](2)
    for layer in model.model.layers:
        layer.mlp.experts = nn.ModuleList(nn.Linear(16, 99) for _ in range(3))
    with pytest.raises(PartitionError, match="no MLP of a known form"):
        prune_block(model, tensors_by_block(model)[CHANGED], 25)


def test_an_unknown_type_loses_neurons_alone() -> None:
    model: Any = make("StableLmConfig", "StableLmForCausalLM", **DECODER | {"num_key_value_heads": 2})(2)
    narrow = prune_block(model, tensors_by_block(model)[CHANGED], 50)
    assert narrow["layers.1.mlp.up_proj.weight"].shape == (12, 16)
    assert narrow["layers.1.self_attn.q_proj.weight"].shape == (16, 16)
