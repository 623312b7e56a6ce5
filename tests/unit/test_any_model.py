"""Whatever the family: a model is cut into blocks and put together again, in every codec, and its other blocks can be trained."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedcybgd.shared.models.assembly import Assembled
from fedcybgd.shared.models.blocks import names_by_canonical, partition
from fedcybgd.shared.models.pruning import prune_block
from fedcybgd.shared.tensors.codecs import encode_tensor
from tests.support.decoded import decode
from tests.support.families import EVERY_FAMILY, assembled_of, empty, logits_of, loss_of, randomised, tensors_by_block  # fmt: skip

every_family = pytest.mark.parametrize("family", EVERY_FAMILY)
LAYERS = 3
CHANGED = "layers.1"


@functools.cache
def original_of(family: str) -> Any:
    return randomised(EVERY_FAMILY[family][1](LAYERS))


def check_training(assembled: Assembled, block: dict[str, Tensor]) -> None:
    """The loss has a finite gradient, nowhere all zeros, with respect to a block, and no other block has one."""
    assembled.put({name: tensor.clone() for name, tensor in block.items()})
    parameters = {name: assembled.parameter(name) for name in block if assembled.is_parameter(name)}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    loss = loss_of(assembled.model)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(float(p.grad.abs().sum()) for p in parameters.values() if p.grad is not None) > 0
    trained = {id(p) for p in parameters.values()}
    assert all(p.grad is None for p in assembled.model.parameters() if id(p) not in trained)
    assembled.put(block)


@every_family
@pytest.mark.parametrize("per_block", [1, 2])
def test_the_blocks_are_all_of_the_model_and_give_its_loss_to_the_bit(family: str, per_block: int) -> None:
    original = original_of(family)
    blocks = tensors_by_block(original, per_block)
    held = [name for tensors in blocks.values() for name in tensors]
    assert len(held) == len(set(held))
    assert set(held) == set(names_by_canonical(original))
    assert sum(b.num_parameters for b in partition(original, per_block)) == sum(p.numel() for p in original.parameters())
    model = assembled_of(family, original, blocks).model
    assert type(model) is type(original)
    with torch.no_grad():
        assert torch.equal(logits_of(model), logits_of(original))
        assert torch.equal(loss_of(model), loss_of(original))


@every_family
@pytest.mark.parametrize("codec", ["exact", "dropped", "pruned:25", "pruned:50"])
def test_the_loss_has_gradients_with_a_layer_in_any_codec(family: str, codec: str) -> None:
    original = original_of(family)
    blocks = tensors_by_block(original)
    assembled = assembled_of(family, original, blocks)
    if codec == "dropped":
        assembled.drop([1])
    elif codec != "exact":
        assembled.put_pruned(prune_block(original, blocks[CHANGED], int(codec.removeprefix("pruned:"))))
    assembled.check_complete()
    for trained in ("embeddings", "layers.0", "layers.2", [*blocks][-1]):
        check_training(assembled, blocks[trained])
    with torch.no_grad():
        assert torch.equal(loss_of(assembled.model), loss_of(original)) is (codec == "exact")


@every_family
@pytest.mark.parametrize(("codec", "error"), [("int8", 0.02), ("int4", 0.3)])
def test_quantized_blocks_give_nearly_the_loss(
    family: str, codec: str, error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcybgd.shared.tensors.codecs.MIN_NUMEL", 1)  # or nothing of models this small would be quantized
    original = original_of(family)
    blocks = tensors_by_block(original)
    decoded = {}
    for block, tensors in blocks.items():
        stored = {key: value for name, tensor in tensors.items() for key, value in encode_tensor(name, tensor, codec).items()}
        save_file(stored, tmp_path / block, metadata={"codec": codec})
        decoded[block] = decode(tmp_path / block, codec)
    assert any(not torch.equal(decoded[block][name], tensor) for block, tensors in blocks.items() for name, tensor in tensors.items())
    assembled = assembled_of(family, original, decoded)
    with torch.no_grad():
        assert float((loss_of(assembled.model) - loss_of(original)).abs()) < error
    check_training(assembled, blocks["layers.0"])


@every_family
def test_a_warm_model_takes_any_codec_after_any_other(family: str) -> None:
    original = original_of(family)
    blocks = tensors_by_block(original)
    narrow = {percent: prune_block(original, blocks[CHANGED], percent) for percent in (25, 50)}
    assembled = assembled_of(family, original, blocks)
    losses: dict[str, set[float]] = {}
    for codec in ["exact", "dropped", "exact", "25", "exact", "50", "25", "dropped", "50", "dropped", "exact"]:
        if codec == "dropped":
            assembled.drop([1])
        elif codec == "exact":
            assembled.put(blocks[CHANGED])
        else:
            assembled.put_pruned(narrow[int(codec)])
        assembled.check_complete()
        with torch.no_grad():
            losses.setdefault(codec, set()).add(float(loss_of(assembled.model)))
    assert all(len(found) == 1 for found in losses.values()), losses
    assert len({loss for found in losses.values() for loss in found}) == 4
    with torch.no_grad():
        assert losses["exact"] == {float(loss_of(original))}


@every_family
def test_a_pruned_model_is_cut_from_its_skeleton_alone(family: str) -> None:
    original = original_of(family)
    tensors = tensors_by_block(original)[CHANGED]
    with_weights, without = prune_block(original, tensors, 25), prune_block(empty(family, original), tensors, 25)
    assert with_weights.keys() == without.keys()
    assert all(torch.equal(with_weights[name], without[name]) for name in without)
