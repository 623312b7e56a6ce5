"""A directory of adapters, and of what was trained beside them, that peft loads."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from fedcybgd.coordinator.domain.jobs.payloads import ExportPayload
from fedcybgd.coordinator.engine.shards import Piece, from_blob, from_tensor, shard_header, write_json, write_shard
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.adapters import LEFT, RIGHT, Adapters, is_factor
from fedcybgd.shared.contract.manifests import FileRef, ShardRef
from fedcybgd.shared.models.adapters import has_inputs_first
from fedcybgd.shared.models.assembly import names_by_canonical


class ExportRefused(Invalid):
    """What was trained beside the adapters has no place in a PEFT directory."""

    code = "export_refused"


def peft_files(store: EngineStore, payload: ExportPayload, model: nn.Module, adapters: Adapters) -> list[FileRef]:
    """The files of the directory, but for the model card. Raises `ExportRefused`."""
    names = names_by_canonical(model)
    saved = [name for block in payload.blocks for name in shard_header(store, block.digest).tensors if not is_factor(name)]
    trained = list(dict.fromkeys(names[name].rpartition(".")[0] for name in saved))
    _check_saved(model, trained, saved, adapters)
    turned = any(has_inputs_first(model, names[weight]) for weight in adapters.matrices)
    pieces = list(beside(store, payload.blocks, turned, {name: _called(path, turned) for name, path in names.items()}))
    digest, size = write_shard(store, pieces, {"format": "pt"})
    base, _, revision = (payload.base or "").partition("@")
    config = {
        # Named, a task makes peft keep modules of its own choice, which many heads are not.
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base or None, "revision": revision or None, "inference_mode": True,
        "r": adapters.rank, "lora_alpha": adapters.alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": turned,
        "target_modules": [names[weight].rpartition(".")[0] for weight in adapters.matrices], "modules_to_save": trained or None,
    }  # fmt: skip
    weights = FileRef(name="adapter_model.safetensors", digest=digest, size=size)
    tokenizer = [file for file in payload.files if file.name not in ("config.json", "generation_config.json")]
    return [*tokenizer, write_json(store, "adapter_config.json", config), weights]


def beside(store: EngineStore, blocks: Sequence[ShardRef], turned: bool, names: Mapping[str, str] | None = None) -> Iterator[Piece]:
    """The tensors of a directory for peft, by the names that it gives them; factors are `turned` round where matrices are (inputs, outputs)."""
    for block in blocks:
        header = shard_header(store, block.digest)
        for name, tensor in header.tensors.items():
            called = names[name] if names else name
            if turned and is_factor(name):
                yield from_tensor(called, tensor.shape[::-1], torch.float32, partial(_turned, store, block.digest, name))
            else:
                yield from_blob(store, block.digest, header, tensor, called)


def _turned(store: EngineStore, digest: str, name: str) -> torch.Tensor:
    with store.localised(digest) as place, safe_open(place, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor.T


def _called(path: str, turned: bool) -> str:
    """A tensor's name as peft has it: of two factors the one that meets the inputs is A."""
    module, _, leaf = path.rpartition(".")
    if leaf not in (LEFT, RIGHT):
        return f"base_model.model.{path}"
    return f"base_model.model.{module}.lora_{'A' if leaf == (LEFT if turned else RIGHT) else 'B'}.weight"


def _check_saved(model: nn.Module, trained: Sequence[str], saved: Sequence[str], adapters: Adapters) -> None:
    """peft keeps what was trained beside adapters as copies of modules, which nothing else may be a part of."""
    weights: Mapping[int, int] = _uses(model)
    for path in trained:
        module: Any = model.get_submodule(path)
        tied = any(weights[id(parameter)] > 1 for parameter in module.parameters())
        if tied or any(True for _ in module.children()) or set(adapters.matrices) & set(saved):
            why = "is tied to another" if tied else "is no module of its own, or has adapters"
            raise ExportRefused(
                f"{path} was trained beside the adapters and {why}, which a PEFT directory has no place for: export it merged"
            )


def _uses(model: nn.Module) -> dict[int, int]:
    found: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found[id(parameter)] = found.get(id(parameter), 0) + 1
    return found
