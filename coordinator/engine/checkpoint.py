"""The weights of a model directory: the files that transformers would load, and where each tensor lies in them."""

import re
from dataclasses import dataclass
from pathlib import Path

from fedcybgd.coordinator.engine.model_directory import ModelDirectory, ModelRefused, is_within
from fedcybgd.shared.files.safetensors_header import Header, TensorInfo, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 64 << 20
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OTHERS = {
    "*.gguf": "for llama.cpp: add the checkpoint that it was made of", "*.onnx": "of ONNX: add the checkpoint that it was made of",
    "*.h5": "of TensorFlow: transformers before 5 loads it with from_tf=True", "*.msgpack": "of Flax: transformers before 5 loads it with from_flax=True",
    "*.npz": "of NumPy: add the checkpoint that it was made of", "*.ot": "of Rust: add the checkpoint that it was made of",
}  # fmt: skip
"""Weights in formats that are not read here, and what to do"""
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint's tensor is."""

    path: Path
    header: Header
    tensor: TensorInfo


def read_checkpoint(folder: ModelDirectory, named: object = None) -> dict[str, Source]:
    """The tensors of a checkpoint by the names that it gives them.

    `model.safetensors` goes before an index, as in transformers; `named` is the `transformers_weights` of its configuration and goes
    before both. Other files are no weights of this model. Raises `ModelRefused`.
    """
    sources: dict[str, Source] = {}
    found: dict[str, str] = {}
    for name in _files(folder, named):
        path = folder.file(name)
        header = read_header(path)
        for tensor in header.tensors.values():
            if tensor.name in sources:
                raise ModelRefused(f"tensor {tensor.name} is in {found[tensor.name]} and in {name}")
            sources[tensor.name], found[tensor.name] = Source(path, header, tensor), name
    return sources


def refuse_adapter(folder: ModelDirectory) -> None:
    if adapters := [name for name in ADAPTERS if folder.has(name)]:
        raise ModelRefused(f"{folder} is or has an adapter ({adapters[0]}): merge it first (merge_and_unload of peft), and add the result")


def _files(folder: ModelDirectory, named: object) -> list[str]:
    refuse_adapter(folder)
    if isinstance(named, str):
        return _listed(folder, named) if named.endswith(".index.json") else [named]
    if folder.has(WEIGHTS):
        return [WEIGHTS]
    if folder.has(INDEX):
        return _listed(folder, INDEX)
    found = folder.names("*.safetensors")
    shards = {match.group(0): (int(match.group(1)), int(match.group(2))) for name in found if (match := SHARD.fullmatch(name))}
    if shards and sorted(shards.values()) == [(i, len(shards)) for i in range(1, len(shards) + 1)]:
        return sorted(shards)
    if found:
        raise ModelRefused(f"{folder} has {', '.join(found[:3])}, but neither {WEIGHTS} nor {INDEX} to say that these are all its weights")
    if pickled := folder.names(*PICKLES):
        hint = f" ({', '.join(pickled[:3])} {'is a pickle' if len(pickled) == 1 else 'are pickles'}, which can run code and are refused)"
    elif others := [(name, what) for pattern, what in OTHERS.items() for name in folder.names(pattern)]:
        hint = f" ({others[0][0]} is {others[0][1]})"
    else:
        hint = ""
    raise ModelRefused(f"{folder} has no .safetensors weights{hint}; save the model with save_pretrained(safe_serialization=True)")


def _listed(folder: ModelDirectory, index: str) -> list[str]:
    weight_map = folder.json(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelRefused(f"{folder.place(index)} is no index of a checkpoint")
    names = sorted(set(weight_map.values()))
    if absent := [name for name in names if is_within(name) and not folder.has(name)]:
        raise ModelRefused(f"files of the checkpoint are missing: {', '.join(absent)}")
    return names
