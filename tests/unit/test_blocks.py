"""The blocks of a model are disjoint, together they are all of it, and patterns mean whole names."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from fedcybgd.shared.contract.block_names import select
from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.models.assembly import skeleton
from fedcybgd.shared.models.blocks import BlockSpec, layer_index, own_tensors, partition
from fedcybgd.shared.models.families import base_prefix, canonical, find_stack
from tests.support.families import FAMILIES, IMAGES, MORE_FAMILIES, OPT, TINY, inputs_of

# What follows the layers, in order; "lm_head" of a tied model belongs to the embeddings.
AFTER = {
    "deit": ["norm", "head"], "beit": ["pooler", "head"], "data2vec-vision": ["pooler", "head"], "dinov2": ["norm", "head"],
    "dinov2-registers": ["norm", "head"], "swin": ["norm", "head"], "convnext": ["pooler", "head"],
    "bert": ["pooler", "head"], "roberta": ["head"], "distilbert": ["head"], "gpt2": ["norm"], "gpt2-classifier": ["norm", "head"],
    "opt": ["norm"], "opt-projected": ["norm"], "bloom": ["norm"], "llama-tied": ["norm"], "llama-untied": ["norm", "head"],
    "llama-classifier": ["norm", "head"], "mistral": ["norm", "head"], "qwen2": ["norm"],
    "qwen3": ["norm"], "gemma": ["norm"], "gemma2": ["norm"], "gemma3": ["norm"], "phi": ["norm", "head"], "phi3": ["norm", "head"],
    "glm": ["norm", "head"], "glm4": ["norm", "head"], "vit": ["norm", "head"],
    "xlm-roberta": ["head"], "camembert": ["head"], "electra": ["head"], "mpnet": ["head"], "deberta": ["head"], "deberta-v2": ["head"],
    "deberta-v3": ["head"], "albert": ["pooler", "head"], "albert-groups": ["pooler", "head"], "modernbert": ["norm", "head"],
    "ibert": ["head"], "xlnet": ["head"], "longformer": ["head"], "gpt-neox": ["norm", "head"], "smollm3": ["norm"], "qwen3-classifier": ["norm", "head"],
    "gemma4": ["norm"], "mixtral": ["norm", "head"], "qwen2-moe": ["norm", "head"], "qwen3-moe": ["norm", "head"],
}  # fmt: skip
LAYERS = {"albert": 1, "albert-groups": 2}
"""How many layers a model has whose three runs share them; three elsewhere."""
ALL = FAMILIES | MORE_FAMILIES | IMAGES


def names(blocks: list[BlockSpec]) -> list[str]:
    return [block.name for block in blocks]


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("per_block", [1, 2, 5])
def test_every_tensor_is_in_exactly_one_block(family: str, per_block: int) -> None:
    model = ALL[family][1](3)
    blocks = partition(model, per_block)
    prefix = base_prefix(model)
    held = [t.name for block in blocks for t in block.tensors]
    assert len(held) == len(set(held))
    storages = {p.data_ptr() for p in model.parameters()}
    assert set(held) == {canonical(n, prefix) for n in own_tensors(model)}
    assert sum(block.num_parameters for block in blocks) == sum(p.numel() for p in model.parameters())
    assert len([t for block in blocks for t in block.tensors if t.is_parameter]) == len(storages)
    shapes = {canonical(n, prefix): tuple(t.shape) for n, t in own_tensors(model).items()}
    assert all(shapes[t.name] == t.shape for block in blocks for t in block.tensors)


@pytest.mark.parametrize("family", ALL)
def test_blocks_come_in_the_order_of_the_forward_pass(family: str) -> None:
    blocks = partition(ALL[family][1](3))
    assert names(blocks) == ["embeddings", *(f"layers.{i}" for i in range(LAYERS.get(family, 3))), *AFTER[family]]
    assert all(block.is_used for block in blocks)


@pytest.mark.parametrize("family", ALL)
def test_the_forward_pass_runs_through_the_blocks_in_that_order(family: str) -> None:
    model = ALL[family][1](3)
    prefix = base_prefix(model)
    block_of = {t.name: i for i, b in enumerate(partition(model)) for t in b.tensors}
    ran: list[int] = []
    for path, module in model.named_modules():
        own = {
            block_of[canonical(f"{path}.{n}", prefix)]
            for n, _ in module.named_parameters(recurse=False)
            if canonical(f"{path}.{n}", prefix) in block_of
        }
        tied = "lm_head" in path and AFTER[family][-1:] != ["head"]  # a second use of the embeddings
        if own and not tied and not isinstance(module, transformers.PreTrainedModel):  # it ends when all of it has run
            [index] = own
            module.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(**inputs_of(model))
    if family == "deberta-v2":  # its convolution runs beside the first layer
        ran = [index for place, index in enumerate(ran) if index or place < ran.index(1)]
    assert ran == sorted(ran)
    assert set(ran) == set(block_of.values())


@pytest.mark.parametrize(
    ("per_block", "layers", "wanted"),
    [
        (1, 3, ["layers.0", "layers.1", "layers.2"]),
        (2, 4, ["layers.0-1", "layers.2-3"]),
        (2, 5, ["layers.0-1", "layers.2-3", "layers.4"]),
        (3, 5, ["layers.0-2", "layers.3-4"]),
        (9, 3, ["layers.0-2"]),
        (1, 12, [f"layers.{i}" for i in range(12)]),
    ],
)
def test_layers_are_grouped(per_block: int, layers: int, wanted: list[str]) -> None:
    model = FAMILIES["llama-tied"][1](layers)
    blocks = [b for b in partition(model, per_block) if b.kind == "layer"]
    assert names(blocks) == wanted
    for block in blocks:
        first, _, last = block.name.removeprefix("layers.").partition("-")
        inside = {int(t.name.split(".")[1]) for t in block.tensors}
        assert inside == set(range(int(first), int(last or first) + 1))


def test_a_layer_is_told_by_its_whole_segment() -> None:
    blocks = {b.name: b for b in partition(FAMILIES["bert"][1](12))}
    assert len(blocks["layers.1"].tensors) == len(blocks["layers.10"].tensors) == len(blocks["layers.11"].tensors)
    assert all(t.name.startswith("encoder.layer.1.") for t in blocks["layers.1"].tensors)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.layers.1.mlp.weight", 1),
        ("model.layers.10.mlp.weight", 10),
        ("model.layers.norm.weight", None),
        ("model.layers2.1.weight", None),
        ("other.model.layers.1.weight", None),
        ("model.layers", None),
    ],
)
def test_layer_index(name: str, index: int | None) -> None:
    assert layer_index(name, "model.layers") == index


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "llama-tied", "qwen2"])
def test_tied_weights_are_in_one_block_once(family: str) -> None:
    model = FAMILIES[family][1](2)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    embeddings = model.get_input_embeddings().weight.shape
    blocks = partition(model)
    assert "head" not in names(blocks)
    holders = [b.name for b in blocks for t in b.tensors if t.shape == tuple(embeddings)]
    assert holders == ["embeddings"]


def test_untied_weights_are_two_blocks() -> None:
    blocks = {b.name: b for b in partition(FAMILIES["llama-untied"][1](2))}
    assert [t.name for t in blocks["head"].tensors] == ["lm_head.weight"]
    assert "embed_tokens.weight" in [t.name for t in blocks["embeddings"].tensors]


@pytest.mark.parametrize("family", ALL)
def test_a_model_without_memory_is_split_alike(family: str) -> None:
    real = ALL[family][1](2)
    with torch.device("meta"):
        shell = type(real)(real.config)
        shell.tie_weights()
    assert partition(shell) == partition(real)


def test_base_parts_are_named_alike_whatever_the_task() -> None:
    base = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2, **TINY))
    task = FAMILIES["bert"][1](2)
    assert partition(base) == [b for b in partition(task) if b.name != "head"]


TWELVE = ["embeddings", *(f"layers.{i}" for i in range(12)), "norm", "head"]
GROUPS = ["embeddings", "layers.0-1", "layers.2-3", "layers.4", "head"]


@pytest.mark.parametrize(
    ("patterns", "among", "chosen"),
    [
        (["layers.1"], TWELVE, ["layers.1"]),
        (["layers.10"], TWELVE, ["layers.10"]),
        (["layers.1-2"], TWELVE, ["layers.1", "layers.2"]),
        (["layers.9-11"], TWELVE, ["layers.9", "layers.10", "layers.11"]),
        (["layers"], TWELVE, TWELVE[1:13]),
        (["all"], TWELVE, TWELVE),
        (["head", "embeddings"], TWELVE, ["embeddings", "head"]),
        (["layers.1", "layers.0-1"], TWELVE, ["layers.0", "layers.1"]),
        ([], TWELVE, []),
        (["layers"], GROUPS, ["layers.0-1", "layers.2-3", "layers.4"]),
        (["layers.0-3"], GROUPS, ["layers.0-1", "layers.2-3"]),
        (["layers.2-3"], GROUPS, ["layers.2-3"]),
        (["layers.4"], GROUPS, ["layers.4"]),
        (["layers.0-99"], GROUPS, ["layers.0-1", "layers.2-3", "layers.4"]),
    ],
)
def test_patterns(patterns: list[str], among: list[str], chosen: list[str]) -> None:
    assert select(patterns, among) == chosen


@pytest.mark.parametrize(
    "pattern", ["layers.12", "layers.3-2", "layer", "layers.", "layers.x", "Layers", "emb", "layers.1.", "layers.-1", "", "*", "layers.01x"]
)
def test_a_pattern_that_means_nothing_is_refused_with_what_there_is(pattern: str) -> None:
    with pytest.raises(PartitionError) as refused:
        select(["head", pattern], TWELVE)
    assert f"{pattern!r} means no block" in refused.value.message
    assert "layers.11" in refused.value.message
    assert refused.value.detail == {"blocks": TWELVE}


@pytest.mark.parametrize(
    ("pattern", "cut"),
    [("layers.1", "layers.0-1"), ("layers.1-2", "layers.0-1, layers.2-3"), ("layers.3-4", "layers.2-3"), ("layers.0-2", "layers.2-3")],
)
def test_a_range_that_cuts_through_a_block_is_refused(pattern: str, cut: str) -> None:
    with pytest.raises(PartitionError, match=f"cuts through {cut}; blocks are trained whole"):
        select([pattern], GROUPS)


@pytest.mark.parametrize("family", ["esm", "big_bird"])
def test_what_a_model_has_and_never_runs_is_known(family: str) -> None:
    """Their classifiers read the hidden states themselves, and keep the pooler of their base model."""
    settings = transformers.AutoConfig.for_model(family, **TINY, num_hidden_layers=2, pad_token_id=1)
    model = transformers.AutoModelForSequenceClassification.from_config(settings)
    assert [b.name for b in partition(model) if not b.is_used] == ["pooler"]


def test_a_model_that_sends_tokens_to_where_its_table_lies_is_refused() -> None:
    """Until its rows are asked for it is nowhere, and so the tokens would be: every score was that of zeros."""
    settings = transformers.Llama4TextConfig(**TINY, num_hidden_layers=2, num_key_value_heads=1, head_dim=8, intermediate_size_mlp=24)
    with pytest.raises(PartitionError, match=r"asks where .*embed_tokens.weight lies"):
        partition(transformers.Llama4ForCausalLM(settings))
    sines = transformers.RoFormerConfig(**TINY, num_hidden_layers=2)  # a class of its own, which is there all the time
    assert partition(transformers.RoFormerForSequenceClassification(sines))


def test_a_model_whose_layers_share_weights_is_refused() -> None:
    """A layer that is read when it runs has nothing at other times, and neither had the one that shares its weights."""
    settings = transformers.ZambaConfig(
        **TINY, num_hidden_layers=6, attn_layer_period=3, attn_layer_offset=2, attention_hidden_size=32, attention_head_dim=16,
        n_mamba_heads=2, mamba_d_state=4, mamba_dt_rank=4,
    )  # fmt: skip
    with pytest.raises(PartitionError, match=r"weights that are another's too: \S+layers.5\S+ is \S+layers.2"):
        partition(transformers.ZambaForCausalLM(settings))


@pytest.mark.parametrize(
    "settings", [transformers.ReformerConfig(is_decoder=True), transformers.CpmAntConfig()], ids=["reformer", "cpmant"]
)
def test_a_model_whose_code_does_not_go_with_visits_is_refused(settings: Any) -> None:
    with pytest.raises(PartitionError, match=f"a {settings.model_type} cannot be trained here"):
        partition(skeleton(settings.to_dict(), "causal-lm"))


def test_layers_need_not_be_alike() -> None:
    model = FAMILIES["llama-tied"][1](4)
    for name in ("gate_proj", "up_proj"):
        setattr(model.model.layers[2].mlp, name, nn.Linear(16, 99, bias=False))
    model.model.layers[2].mlp.down_proj = nn.Linear(99, 16, bias=False)
    blocks = {b.name: b for b in partition(model)}
    assert blocks["layers.2"].num_parameters - blocks["layers.1"].num_parameters == 3 * 16 * (99 - 24)


def test_what_is_registered_in_another_order_than_it_runs_is_where_it_runs() -> None:
    model = FAMILIES["roberta"][1](2)
    plain = partition(model)
    classifier = model.classifier
    del model.classifier
    first = dict(model.named_children())
    for name in first:
        delattr(model, name)
    model.classifier = classifier
    for name, child in first.items():
        setattr(model, name, child)
    assert next(iter(model.state_dict())).startswith("classifier")
    assert partition(model) == plain


@pytest.mark.parametrize(
    ("family", "table"),
    [
        ("mpnet", "encoder.relative_attention_bias.weight"),
        ("deberta", "encoder.rel_embeddings.weight"),
        ("deberta-v3", "encoder.rel_embeddings.weight"),
        ("deberta-v3", "encoder.LayerNorm.weight"),
        ("deberta-v2", "encoder.conv.conv.weight"),
    ],
)
def test_what_layers_share_belongs_to_the_embeddings(family: str, table: str) -> None:
    blocks = partition(ALL[family][1](3))
    assert [b.name for b in blocks for t in b.tensors if t.name == table] == ["embeddings"]


@pytest.mark.parametrize("family", ["XLMRoberta", "Camembert"])
def test_a_tied_weight_goes_by_the_name_of_the_base_model(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(**TINY, num_hidden_layers=2)
    base = getattr(transformers, f"{family}Model")(config, add_pooling_layer=False)
    task = getattr(transformers, f"{family}ForMaskedLM")(config)
    assert next(iter(task.state_dict())).startswith("lm_head"), "the head is registered first"
    assert partition(base) == [b for b in partition(task) if b.name != "head"]


def test_the_pass_takes_no_memory_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[int] = []
    plain = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda x, w, b=None: (largest.append(w.untyped_storage().nbytes()), plain(x, w, b))[1])
    sizes = TINY | {"vocab_size": 200_000, "hidden_size": 4096, "intermediate_size": 20_000}
    with torch.device("meta"):
        shell = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=2))
    assert names(partition(shell)) == ["embeddings", "layers.0", "layers.1", "norm", "head"]
    assert max(largest) <= 8
    assert all(p.is_meta for p in shell.parameters()), "the model is left as it was"


def test_layers_that_do_not_run_one_after_another_are_refused() -> None:
    model = FAMILIES["llama-tied"][1](3)
    layers = model.model.layers
    layers[1].forward, layers[2].forward = layers[2].forward, layers[1].forward
    partition(model)
    model.config.num_hidden_layers = 2  # the third is there, but never runs
    with pytest.raises(PartitionError, match=r"\(model\.layers, 3 of them\) do not run one after another: 0, 1 ran"):
        partition(model)
    model.model.forward = lambda *_, **__: 1 / 0
    with pytest.raises(PartitionError, match=r"LlamaForCausalLM could not be followed: ZeroDivisionError"):
        partition(model)


def test_a_pool_of_blocks_of_layers_is_refused() -> None:
    sizes = {"vocab_size": 61, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24}
    model = transformers.FunnelForSequenceClassification(transformers.FunnelConfig(**sizes, block_sizes=[1, 1, 1]))
    with pytest.raises(PartitionError, match="do not run one after another: none ran"):
        partition(model)


@pytest.mark.parametrize("model", ["T5", "Bart"])
def test_an_encoder_decoder_is_refused_with_its_stacks(model: str) -> None:
    sizes: dict[str, Any] = {
        "T5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 64},
        "Bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
                 "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 32},
    }[model]  # fmt: skip
    config = getattr(transformers, f"{model}Config")(**sizes)
    with pytest.raises(PartitionError, match="several stacks of layers") as refused:
        partition(getattr(transformers, f"{model}ForConditionalGeneration")(config))
    assert any("encoder" in s for s in refused.value.detail["stacks"])
    assert any("decoder" in s for s in refused.value.detail["stacks"])


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(PartitionError, match="no stack of layers"):
        partition(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU()])))


def test_a_list_inside_a_layer_belongs_to_it() -> None:
    model = FAMILIES["llama-tied"][1](2)
    for layer in model.model.layers:
        layer.mlp.experts = nn.ModuleList(nn.Linear(16, 99) for _ in range(3))
    assert find_stack(model).path == "model.layers"
    blocks = {b.name: b for b in partition(model)}
    assert list(blocks) == ["embeddings", "layers.0", "layers.1", "norm"]
    assert "layers.1.mlp.experts.2.weight" in [t.name for t in blocks["layers.1"].tensors]


def test_projections_of_opt_are_where_they_are_run() -> None:
    blocks = {b.name: b for b in partition(FAMILIES["opt-projected"][1](2))}
    assert "decoder.project_in.weight" in [t.name for t in blocks["embeddings"].tensors]
    assert [t.name for t in blocks["norm"].tensors] == ["decoder.project_out.weight"]
    whole = {b.name: b for b in partition(transformers.OPTForCausalLM(transformers.OPTConfig(**OPT, num_hidden_layers=2)))}
    assert [t.name for t in whole["norm"].tensors] == ["decoder.final_layer_norm.weight", "decoder.final_layer_norm.bias"]
