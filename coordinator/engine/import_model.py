"""Splits a checkpoint into blocks and stores each as a shard, by copying bytes: no weight is ever loaded."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from coordinator.domain.job import ImportPayload, ImportResult, StoredBlock, TensorShape
from coordinator.engine.shards import from_file, write_blob, write_shard
from coordinator.errors import Invalid
from coordinator.storage import BlobStore
from shared.assembly import names_by_canonical, skeleton
from shared.blocks import FRESHLY_MADE, BlockSpec, partition
from shared.families import base_prefix, canonical
from shared.protocol import FileRef
from shared.safetensors_header import FLOAT_DTYPES, Header, TensorInfo, read_header

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
LEGACY_NAMES = ((re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"), (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"))


class ModelRefused(Invalid):
    code = "model_refused"


@dataclass(frozen=True)
class Source:
    """Where a checkpoint's tensor is."""

    path: Path
    header: Header
    tensor: TensorInfo


def import_model(store: BlobStore, payload: ImportPayload) -> ImportResult:
    """Store the model at a directory or hub id, block by block.

    Peak memory is that of the headers and a chunk of 1 MiB. Raises `ModelRefused` for pickled weights, models that need
    remote code, and tensors that are missing, unknown or of the wrong shape, by name.
    """
    folder = locate(payload.source)
    config = _config(folder)
    model = skeleton(config, None)
    blocks = partition(model)
    sources, left_out = _match(_checkpoint(folder), blocks, model)
    stored = [_store_block(store, block, sources) for block in blocks if any(t.name in sources for t in block.tensors)]
    return ImportResult(
        config=dict(config),
        files=_files(store, folder),
        blocks=stored,
        left_out=left_out,
        num_parameters=sum(b.num_parameters for b in stored),
    )


def locate(source: str) -> Path:
    """The local directory of a model: the path itself, or what the hub gives for an id like `owner/name[@revision]`."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelRefused(f"{source} is no directory on the coordinator's machine, and no hub id (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelRefused("hub ids need huggingface_hub: pip install 'fedcybgd[hub]'") from error
    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except Exception as error:
        raise ModelRefused(f"the hub did not give {source}: {type(error).__name__}: {error}") from error


def _config(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise ModelRefused(f"{folder} has no config.json: it is no model directory") from error
    except ValueError as error:
        raise ModelRefused(f"{folder / 'config.json'} is no JSON") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelRefused(f"{folder / 'config.json'} names no model_type")
    if "auto_map" in config:
        raise ModelRefused("this model needs code of its own (auto_map in config.json), and foreign code is never run")
    if "quantization_config" in config:
        raise ModelRefused("this checkpoint is quantized; add the original one, whose weights are floats")
    return config


def _checkpoint(folder: Path) -> dict[str, Source]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelRefused(f"{index} is no index of a checkpoint") from error
        paths = [folder / name for name in sorted(listed) if Path(name).name == name]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        pickled = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        hint = f" ({', '.join(pickled[:3])} are pickles, which can run code and are refused)" if pickled else ""
        raise ModelRefused(f"{folder} has no .safetensors weights{hint}; save the model with save_pretrained(safe_serialization=True)")
    if absent := [p.name for p in paths if not p.is_file()]:
        raise ModelRefused(f"files of the checkpoint are missing: {', '.join(absent)}")
    sources: dict[str, Source] = {}
    for path in paths:
        header = read_header(path)
        for name, tensor in header.tensors.items():
            if name in sources:
                raise ModelRefused(f"tensor {name} is in {sources[name].path.name} and in {path.name}")
            sources[name] = Source(path, header, tensor)
    return sources


def _match(checkpoint: dict[str, Source], blocks: list[BlockSpec], model: nn.Module) -> tuple[dict[str, Source], list[str]]:
    """The source of each canonical name, and the names of the checkpoint that the model does without."""
    prefix = base_prefix(model)
    expected = {t.name: t for block in blocks for t in block.tensors}
    aliases = {canonical(name, prefix) for name in model.state_dict()} | {canonical(name, prefix) for name, _ in model.named_buffers()}
    base_names = {name.split(".")[0] for name, full in names_by_canonical(model).items() if not prefix or full != name}
    sources: dict[str, Source] = {}
    left_out, foreign = [], []
    for raw, source in checkpoint.items():
        name = raw
        for pattern, modern in LEGACY_NAMES:
            name = pattern.sub(modern, name)
        name = canonical(name, prefix)
        if name in expected:
            sources[name] = source
        elif name in aliases or name.split(".")[0] not in base_names:
            left_out.append(raw)  # a second name of a tied tensor, a buffer that is computed anew, or a head of another task
        else:
            foreign.append(raw)
    wrong = [
        f"{name} is {s.tensor.dtype} {list(s.tensor.shape)}, must be a float {list(expected[name].shape)}"
        for name, s in sources.items()
        if s.tensor.shape != expected[name].shape or (expected[name].is_parameter and s.tensor.dtype not in FLOAT_DTYPES)
    ]
    # What comes after the base model may be made afresh for a run; the base must be whole.
    missing = [t.name for block in blocks if block.kind not in FRESHLY_MADE for t in block.tensors if t.name not in sources]
    if problems := [*_report("unknown", foreign), *_report("missing", missing), *_report("wrong", wrong)]:
        raise ModelRefused(
            f"the checkpoint does not fit {type(model).__name__}: {'; '.join(problems)}",
            unknown=foreign[:50],
            missing=missing[:50],
            wrong=wrong[:50],
        )
    return sources, left_out


def _report(what: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [f"{what}: {', '.join(listed[:5])}" + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")] if listed else []


def _store_block(store: BlobStore, block: BlockSpec, sources: dict[str, Source]) -> StoredBlock:
    present = [t for t in block.tensors if t.name in sources]
    pieces = [from_file(sources[t.name].path, sources[t.name].header, sources[t.name].tensor, t.name) for t in present]
    digest, size = write_shard(store, pieces)
    return StoredBlock(
        name=block.name, kind=block.kind, digest=digest, size=size,
        num_parameters=sum(t.numel for t in present if t.is_parameter),
        tensors=[TensorShape(name=t.name, shape=list(t.shape)) for t in present],
    )  # fmt: skip


def _files(store: BlobStore, folder: Path) -> list[FileRef]:
    files = []
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            digest, size = write_blob(store, path.read_bytes())
            files.append(FileRef(name=name, digest=digest, size=size))
    if not any(f.name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for f in files):
        raise ModelRefused(f"{folder} has no tokenizer (tokenizer.json)")
    return files
