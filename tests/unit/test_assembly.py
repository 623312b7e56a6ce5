"""A model that is assembled from shards is the model that they were cut from, to the bit, and nothing else goes in."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.models.assembly import Assembled, AssemblyError, names_by_canonical, read_shard, skeleton
from fedcybgd.shared.models.blocks import own_tensors, partition
from fedcybgd.shared.models.families import base_prefix, canonical
from tests.support.families import FAMILIES, TINY

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def config_of(model: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return values


def cut(model: Any, folder: Path, per_block: int = 1) -> dict[str, Path]:
    """The shards of a model, by block."""
    prefix = base_prefix(model)
    tensors = {canonical(name, prefix): tensor.detach().clone() for name, tensor in own_tensors(model).items()}
    paths = {}
    for block in partition(model, per_block):
        paths[block.name] = folder / f"{block.name}.safetensors"
        save_file({t.name: tensors[t.name] for t in block.tensors}, paths[block.name])
    return paths


def assemble(model: Any, task: Any, shards: dict[str, Path]) -> Assembled:
    assembled = Assembled(skeleton(config_of(model), task))
    for path in shards.values():
        assembled.put(read_shard(path))
    assembled.check_complete()
    return assembled


def randomised(model: Any) -> Any:
    """All parameters different from what initialisation makes: zeros and ones would hide a tensor that was not put in."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("per_block", [1, 2])
def test_the_assembled_model_gives_the_same_logits_to_the_bit(family: str, per_block: int, tmp_path: Path) -> None:
    task, make = FAMILIES[family]
    original = randomised(make(3))
    assembled = assemble(original, task, cut(original, tmp_path, per_block))
    assert type(assembled.model) is type(original)
    with torch.no_grad():
        wanted = original(TOKENS).logits
        found = assembled.model(TOKENS).logits
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_takes_no_memory_and_is_frozen_when_filled(family: str, tmp_path: Path) -> None:
    task, make = FAMILIES[family]
    original = make(2)
    model = skeleton(config_of(original), task)
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers()), "what a model computes for itself is real"
    assert not model.training
    assembled = assemble(original, task, cut(original, tmp_path))
    assert not any(p.is_meta or p.requires_grad for p in assembled.model.parameters())


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "llama-tied"])
def test_one_block_can_be_exchanged(family: str, tmp_path: Path) -> None:
    task, make = FAMILIES[family]
    original = make(2)
    assembled = assemble(original, task, cut(original, tmp_path))
    changed = randomised(make(2))
    blocks = partition(changed)
    (tmp_path / "new").mkdir()
    shards = cut(changed, tmp_path / "new")
    for block in blocks:
        assembled.put(read_shard(shards[block.name]))
        with torch.no_grad():
            same = torch.equal(assembled.model(TOKENS).logits, changed(TOKENS).logits)
        assert same is (block is blocks[-1]), "the model is the new one once its last block is"


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "llama-tied", "qwen2"])
def test_tied_weights_stay_tied(family: str, tmp_path: Path) -> None:
    task, make = FAMILIES[family]
    original = make(2)
    model: Any = assemble(original, task, cut(original, tmp_path)).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_output_embeddings().weight, original.get_input_embeddings().weight)


def test_a_padding_row_is_kept_as_it_is(tmp_path: Path) -> None:
    original = randomised(FAMILIES["bert"][1](2))
    assert original.bert.embeddings.word_embeddings.padding_idx == 0
    model: Any = assemble(original, "text-classification", cut(original, tmp_path)).model
    assert torch.equal(model.bert.embeddings.word_embeddings.weight[0], original.bert.embeddings.word_embeddings.weight[0])


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    original = FAMILIES["bert"][1](2)
    shards = cut(original, tmp_path)
    del shards["layers.1"]
    with pytest.raises(AssemblyError, match=r"no shard holds encoder\.layer\.1\.") as refused:
        assemble(original, "text-classification", shards)
    assert refused.value.code == "assembly_failed"
    assert all(name.startswith("encoder.layer.1.") for name in refused.value.detail["missing"])


def test_a_tensor_that_the_model_does_not_have_is_refused() -> None:
    assembled = Assembled(skeleton(config_of(FAMILIES["bert"][1](2)), "text-classification"))
    with pytest.raises(AssemblyError, match=r"holds layers\.99\.weight, which the model does not have"):
        assembled.put({"layers.99.weight": torch.zeros(1)})


def test_a_tensor_of_another_shape_is_refused() -> None:
    assembled = Assembled(skeleton(config_of(FAMILIES["bert"][1](2)), "text-classification"))
    with pytest.raises(AssemblyError, match=r"classifier.bias has shape \[4\] in the shard, \[3\] in the model"):
        assembled.put({"classifier.bias": torch.zeros(4)})


def test_tensors_are_put_in_without_a_copy() -> None:
    assembled = Assembled(skeleton(config_of(FAMILIES["bert"][1](2)), "text-classification"))
    bias = torch.ones(3)
    assembled.put({"classifier.bias": bias})
    assert assembled.parameter("classifier.bias").data_ptr() == bias.data_ptr()


def test_a_skeleton_leaves_modules_made_later_alone() -> None:
    skeleton(config_of(FAMILIES["bert"][1](2)), "text-classification")
    assert not nn.Linear(2, 2).weight.is_meta


def test_without_a_task_the_configuration_names_the_class() -> None:
    base = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2, **TINY))
    assert type(skeleton(config_of(base) | {"architectures": ["BertModel"]}, None)) is transformers.BertModel
    assert type(skeleton(config_of(base) | {"architectures": None}, None)) is transformers.BertModel
    assert (
        type(skeleton(config_of(base) | {"architectures": ["BertForSequenceClassification"]}, None))
        is transformers.BertForSequenceClassification
    )


@pytest.mark.parametrize(
    ("config", "task", "says"),
    [
        ({"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}, None, "code of its own"),
        ({"model_type": "no-such-model"}, None, "knows no model type 'no-such-model'"),
        ({}, None, "knows no model type None"),
        ({"model_type": "t5"}, "causal-lm", "t5 has no causal-lm model"),
    ],
)
def test_what_transformers_cannot_make_by_itself_is_refused(config: dict[str, Any], task: Any, says: str) -> None:
    with pytest.raises(FedError, match=says):
        skeleton(config, task)


@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_names_are_unique(family: str) -> None:
    model = FAMILIES[family][1](2)
    names = names_by_canonical(model)
    assert len(names) == len(own_tensors(model))
    assert set(names.values()) == set(own_tensors(model))


def test_two_threads_may_make_skeletons_at_once() -> None:
    """Each puts its own parameters on the meta device, and none is left so for the others."""
    config = {
        "model_type": "bert",
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    before = nn.Module.register_parameter
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(skeleton if i % 2 else real, config, None) for i in range(16)]
        models, others = [f.result() for f in made[1::2]], [f.result() for f in made[::2]]
    assert nn.Module.register_parameter is before
    assert all(p.device.type == "meta" for model in models for p in model.parameters())
    assert all(p.device.type == "cpu" for other in others for p in other.parameters())
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def real(_config: object, _task: object) -> nn.Module:
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(200)])
