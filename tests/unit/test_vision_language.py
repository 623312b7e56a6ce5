"""Models of images and text: split, carried, put together they compute the same; what cannot be split is refused with the reason."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload
from fedcybgd.coordinator.engine.import_model import import_model
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.errors import PartitionError
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.models.assembly import Assembled, base_skeleton, skeleton
from fedcybgd.shared.models.blocks import partition
from tests.support.families import config_of, randomised
from tests.support.models import word_piece

IMAGE = 99
"""The token in whose places the image's patches stand."""
TEXT: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
LARGE = SMALL | {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}


def llava(seeing: dict[str, Any]) -> Any:
    text, vision = transformers.LlamaConfig(**TEXT), transformers.CLIPVisionConfig(**seeing)
    return transformers.LlavaModel(
        transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-1)
    )


def qwen2_vl() -> Any:
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    seeing = {"depth": 1, "embed_dim": 8, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 1, "patch_size": 4, "in_channels": 3}
    tokens = {"image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
    text = TEXT | {"rope_parameters": rotary}
    return transformers.Qwen2VLModel(transformers.Qwen2VLConfig(text_config=text, vision_config=seeing, **tokens))


def of_llava() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[5, IMAGE, IMAGE, IMAGE, IMAGE, 6, 7]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 8, 8, generator=generator)}


def of_qwen() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[97, IMAGE, 96, 6, 7]])  # four patches are merged to one
    patches = torch.randn(4, 3 * 2 * 4 * 4, generator=generator)
    types = (ids == IMAGE).int()
    more = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 2, 2]]), "mm_token_type_ids": types}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "llava": (lambda: llava(SMALL), of_llava),
    "qwen2_vl": (qwen2_vl, of_qwen),
}


def hidden(model: nn.Module, given: dict[str, Any]) -> torch.Tensor:
    states: torch.Tensor = model(**given, use_cache=False).last_hidden_state
    return states


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_an_added_model_compute_what_it_computes(name: str, tmp_path: Path) -> None:
    make, inputs = MODELS[name]
    original = randomised(make().eval())
    original.save_pretrained(tmp_path / "model")
    word_piece(tmp_path / "model", 50)
    store = LocalBlobStore(tmp_path / "blobs")
    added = import_model(store, ImportPayload(source=str(tmp_path / "model")))
    assert [b.name for b in added.blocks] == ["embeddings", "layers.0", "layers.1", "layers.2", "norm"]
    held = {b.name: {t.name for t in b.tensors} for b in added.blocks}
    assert any("vis" in name for name in held["embeddings"]), "what sees comes before the layers"
    assert not any("vis" in name for name in held["layers.0"])
    assembled = Assembled(base_skeleton(added.config))
    blocks = {b.name: load_file(store.path(b.digest)) for b in added.blocks}
    for tensors in blocks.values():
        assembled.put(tensors)
    assembled.check_complete()
    given = inputs()
    with torch.no_grad():
        assert torch.equal(hidden(assembled.model, given), hidden(original, given))
        blind = given | {"pixel_values": torch.zeros_like(given["pixel_values"])}
        assert not torch.equal(hidden(assembled.model, blind), hidden(original, given)), "the image is seen"
    for block, tensors in blocks.items():
        assembled.put({name: tensor.clone() for name, tensor in tensors.items()})
        trained = {name: assembled.parameter(name) for name in tensors if assembled.is_parameter(name)}
        for parameter in trained.values():
            parameter.requires_grad_(True)
        hidden(assembled.model, given).square().sum().backward()
        norms = {name: float(p.grad.norm()) for name, p in trained.items() if p.grad is not None}
        assert all(map(math.isfinite, norms.values())), block
        assert sum(norm > 0 for norm in norms.values()) > len(trained) / 2, block
        assembled.put(tensors)


def test_two_stacks_of_like_size_are_refused_by_name() -> None:
    with pytest.raises(PartitionError, match=r"several stacks of layers: (vision_tower|language_model)") as refused:
        partition(llava(LARGE))
    assert set(refused.value.detail["stacks"]) == {"vision_tower.encoder.layers", "language_model.layers"}


@pytest.mark.parametrize("task", ["causal-lm", "image-classification", "text-classification"])
def test_no_task_of_a_run_is_for_them_and_the_reason_says_so(task: Any) -> None:
    with pytest.raises(ModelUnknown, match=f"llava has no {task} model"):
        skeleton(json.loads(json.dumps(config_of(llava(SMALL)))), task)
