"""What the blocks of a run are made of, known from names and shapes alone: before a run is prepared, and before a shard is encoded."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.adapters import ADAPTERS, WEIGHT, factors_of
from fedcybgd.shared.contract.adapters import select as select_adapters
from fedcybgd.shared.contract.block_names import block_name, select
from fedcybgd.shared.contract.codec import DROPPED, EXACT, PRUNED, kind_of, percent_of
from fedcybgd.shared.contract.delta_layout import expected_layout
from fedcybgd.shared.files.configuration import HIDDEN_SIZE, image_tokens
from fedcybgd.shared.files.safetensors_header import pack_header, tensor_nbytes

GROUP, MIN_NUMEL, MIN_ROW = 64, 1024, 16
"""As in shared/codecs.py and shared/quantized.py, which need torch; a test holds them together."""
Layout = list[tuple[str, str, tuple[int, ...]]]


class PlanRefused(Invalid):
    """A run file that this model cannot be trained by."""

    code = "run_refused"


@dataclass(frozen=True)
class BlockShape:
    """A block by its tensors (canonical name → shape); `itemsize` is 4 for float32 values and 2 for 16-bit ones."""

    name: str
    kind: str
    tensors: Mapping[str, tuple[int, ...]]
    itemsize: int = 4
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """codec → bytes of the shard, bytes of it packed: where a shard is known already"""
    version: int = 0
    influence: float | None = None

    @cached_property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    @cached_property
    def largest(self) -> int:
        """Values of its largest tensor."""
        return max((math.prod(shape) for shape in self.tensors.values()), default=0)

    @cached_property
    def found(self) -> dict[str, int]:
        """Codec → bytes of the shard, as `shard_bytes` found them out."""
        return {}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer that memory goes by, from its configuration."""

    family: str
    hidden: int
    inner: int
    heads: int
    head_dim: int
    layers: int
    vocabulary: int
    image_tokens: int = 0
    """as how many tokens an image passes through it, if it takes images"""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelShape":
        """From the contents of config.json, whatever its family calls them."""
        config = {**config, **(config.get("text_config") or {})}
        hidden = _number(config, HIDDEN_SIZE, 1024)
        heads = _number(config, ("num_attention_heads", "n_head", "n_heads", "num_heads"), max(1, hidden // 64))
        return cls(
            family=str(config.get("model_type", "")), hidden=hidden, heads=heads,
            inner=_number(config, ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size"), 4 * hidden),
            head_dim=_number(config, ("head_dim",), hidden // heads),
            layers=_number(config, ("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1),
            vocabulary=_number(config, ("vocab_size",), 0), image_tokens=image_tokens(config),
        )  # fmt: skip

    def row_tokens(self, spec: RunFile) -> int:
        """Tokens of a row, as long as rows may be."""
        return self.image_tokens if spec.task.kind == "image-classification" else spec.task.max_length

    @property
    def gated(self) -> bool:
        """Whether the feed-forward net has a gate: three matrices instead of two, and norms by the root mean square."""
        return self.family not in UNGATED


# fmt: off
UNGATED = frozenset({
    "albert", "bert", "bloom", "camembert", "deberta", "deberta-v2", "deit", "distilbert", "electra", "ernie", "esm", "falcon", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpnet", "opt", "phi", "roberta", "roberta-prelayernorm", "vit", "xlm-roberta",
})
POOLED = frozenset({"albert", "bert", "big_bird", "canine", "ernie", "fnet", "layoutlm", "luke", "megatron-bert", "mobilebert", "rembert", "tapas"})
"""Families whose classifiers of transformers have a pooler"""
# fmt: on


def _number(config: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    found = next((value for name in names if isinstance(value := config.get(name), int) and not isinstance(value, bool)), None)
    return found if found else default


# ---- the blocks of a run --------------------------------------------------------------------------------------------


def blocks_of_run(spec: RunFile, config: Mapping[str, Any], blocks: Sequence[BlockShape]) -> tuple[list[BlockShape], list[str]]:
    """The blocks that a run over an added model (`blocks`, one layer each) will have, and which of them it visits.

    Layers are joined as `layers_per_block` says, and a task gets its head. Raises `PlanRefused` for blocks trained along that the
    model does not have, `PartitionError` for patterns that mean no block, and `AdaptersRefused`.
    """
    layers = [b for b in blocks if b.kind == "layer"]
    per = spec.schedule.layers_per_block
    joined = [_joined(layers[i : i + per], block_name("layer", i // per, per, len(layers))) for i in range(0, len(layers), per)]
    # What points at answers looks at every token, and has no pooler.
    elsewhere = {"embeddings", "layer", "head"} | ({"pooler"} if spec.task.kind == "extractive-qa" else set())
    before, after = [b for b in blocks if b.kind == "embeddings"], [b for b in blocks if b.kind not in elsewhere]
    head = _head(spec, config, blocks)
    result = [*before, *joined, *after, *_fresh_pooler(spec, config, blocks), *([head] if head else []), *_adapters(spec, joined)]
    names = [b.name for b in result]
    if unknown := [name for name in spec.schedule.always if name not in names]:
        raise PlanRefused(f"`always` names {', '.join(unknown)}; the blocks of this model are {', '.join(names)}", blocks=names)
    check_corrections(spec, result)
    trained = select(spec.schedule.blocks, names)
    return result, [name for name in trained if name not in spec.schedule.always] or trained


def _joined(blocks: Sequence[BlockShape], name: str) -> BlockShape:
    if len(blocks) == 1:
        return blocks[0]
    tensors = {name: shape for block in blocks for name, shape in block.tensors.items()}
    return BlockShape(name, "layer", tensors, blocks[0].itemsize)


def _fresh_pooler(spec: RunFile, config: Mapping[str, Any], blocks: Sequence[BlockShape]) -> list[BlockShape]:
    """What a classifier of this family has, and a model that was saved without it (one for masked words, often) has not: it is made afresh."""
    model = ModelShape.of(config)
    if spec.task.kind != "text-classification" or model.family not in POOLED or any(block.kind == "pooler" for block in blocks):
        return []
    return [BlockShape("pooler", "pooler", {"pooler.dense.weight": (model.hidden, model.hidden), "pooler.dense.bias": (model.hidden,)})]


def _head(spec: RunFile, config: Mapping[str, Any], blocks: Sequence[BlockShape]) -> BlockShape | None:
    """The head of the task: the model's own, or a fresh one as transformers makes it for this family."""
    own = next((b for b in blocks if b.kind == "head"), None)
    if spec.task.kind == "extractive-qa":
        width = ModelShape.of(config).hidden
        return BlockShape("head", "head", {"qa_outputs.weight": (2, width), "qa_outputs.bias": (2,)})
    if not spec.task.is_classification:
        return own
    labels = spec.task.num_labels or 2
    if own is not None and any(shape[:1] == (labels,) for shape in own.tensors.values()):
        return own
    model = ModelShape.of(config)
    dense = {"classifier.dense.weight": (model.hidden, model.hidden), "classifier.dense.bias": (model.hidden,)}
    if model.family in ("roberta", "xlm-roberta", "camembert", "electra", "esm", "roberta-prelayernorm"):
        tensors = dense | {"classifier.out_proj.weight": (labels, model.hidden), "classifier.out_proj.bias": (labels,)}
    elif model.family == "distilbert":
        tensors = {"pre_classifier.weight": (model.hidden, model.hidden), "pre_classifier.bias": (model.hidden,)}
        tensors |= {"classifier.weight": (labels, model.hidden), "classifier.bias": (labels,)}
    elif spec.task.kind == "image-classification":
        width = model.hidden * (2 if model.family.startswith("dinov2") else 1)  # the class token beside the mean of the patches
        tensors = {"classifier.weight": (labels, width), "classifier.bias": (labels,)}
    elif any(b.kind == "pooler" for b in blocks) or model.family in ("bert", "albert", "mpnet", "bloom-encoder"):
        tensors = {"classifier.weight": (labels, model.hidden), "classifier.bias": (labels,)}
    else:
        tensors = {"score.weight": (labels, model.hidden)}
    return BlockShape("head", "head", tensors)


def _adapters(spec: RunFile, layers: Sequence[BlockShape]) -> list[BlockShape]:
    """Their block. Which matrices of the layers are linear is not known here: those that are called weights are taken to be."""
    if spec.adapters is None:
        return []
    return [_factors(layers, spec.adapters.matrices, spec.adapters.rank, ADAPTERS)]


def _factors(layers: Sequence[BlockShape], patterns: Sequence[str], rank: int, section: str) -> BlockShape:
    shapes = {name: shape for block in layers for name, shape in block.tensors.items() if name.endswith(WEIGHT) and len(shape) == 2}
    tensors = dict[str, tuple[int, ...]]()
    for weight in select_adapters(patterns, rank, shapes, section):
        (left, right), (rows, columns) = factors_of(weight), shapes[weight]
        tensors |= {left: (rows, rank), right: (rank, columns)}
    return BlockShape(section, ADAPTERS, tensors)


def check_corrections(spec: RunFile, blocks: Sequence[BlockShape]) -> None:
    """Raises `AdaptersRefused` where the layers have no such matrices as the run file would correct, or too small ones."""
    if spec.corrections is not None:
        _factors([block for block in blocks if block.kind == "layer"], spec.corrections.matrices, spec.corrections.rank, "corrections")


def corrected(spec: RunFile, blocks: Sequence[BlockShape], trained: Collection[str]) -> list[BlockShape]:
    """The blocks that a visit of those in `trained` corrects, by the same rule as domain/corrections.py."""
    if spec.corrections is None:
        return []
    names = [block.name for block in blocks]
    visited = set(select(spec.schedule.blocks, names)) - {*spec.schedule.always}
    first = 0 if spec.corrections.layers == "all" else min(place for place, name in enumerate(names) if name in trained)
    return [block for block in blocks[first:] if block.kind == "layer" and block.name in visited and block.name not in trained]


def corrections(spec: RunFile, blocks: Sequence[BlockShape], trained: Collection[str]) -> list[BlockShape]:
    """The factors of these corrections, as a block of their own: such a visit opens it as one of adapters, and nobody has a shard of it."""
    found, said = corrected(spec, blocks, trained), spec.corrections
    if not found or said is None:
        return []
    every = _factors([block for block in blocks if block.kind == "layer"], said.matrices, said.rank, "corrections")
    wanted = {factor for block in found for name in block.tensors for factor in factors_of(name)}
    return [replace(every, tensors={name: shape for name, shape in every.tensors.items() if name in wanted})]


# ---- bytes ----------------------------------------------------------------------------------------------------------


def stored_layout(block: BlockShape, codec: str, model: ModelShape) -> Layout:
    """(name, safetensors dtype, shape) of what a shard of this codec holds."""
    plain = "F32" if block.itemsize == 4 else "BF16"
    kind = kind_of(codec)
    layout: Layout = []
    for name, shape in block.tensors.items():
        if kind == PRUNED:
            layout.append((name, plain, pruned_shape(shape, percent_of(codec), model)))
        elif kind in ("int8", "int4") and is_quantizable(shape):
            layout += _quantized(name, shape, 8 if kind == "int8" or shape[-1] % 2 else 4)
        else:
            layout.append((name, plain, shape))
    return layout


def is_quantizable(shape: Sequence[int]) -> bool:
    return len(shape) >= 2 and shape[-1] >= MIN_ROW and math.prod(shape) >= MIN_NUMEL


def _quantized(name: str, shape: tuple[int, ...], bits: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    groups = (*shape[:-1], math.ceil(shape[-1] / GROUP))
    yield (name, "I8", shape) if bits == 8 else (name, "U8", (*shape[:-1], shape[-1] // 2))
    yield f"{name}::scales", "BF16", groups
    if bits == 4:
        yield f"{name}::offsets", "BF16", groups


def pruned_shape(shape: tuple[int, ...], percent: int, model: ModelShape) -> tuple[int, ...]:
    """About what pruning leaves: neurons exactly where a dimension is as wide as the feed-forward net, heads in square matrices.

    Which tensors are cut along which side is only known with the model at hand (shared/pruning.py).
    """
    left = {model.inner: _kept(model.inner, percent), 2 * model.inner: 2 * _kept(model.inner, percent)}
    if any(n in left and n != model.hidden for n in shape):
        return tuple(left.get(n, n) if n != model.hidden else n for n in shape)
    if len(shape) < 2:
        return shape
    heads = _kept(model.heads, percent)
    first, *rest = shape
    return (max(1, first * heads // model.heads), *rest)


def _kept(units: int, percent: int) -> int:
    return max(1, (units * (100 - percent) + 50) // 100)


def shard_bytes(block: BlockShape, codec: str, model: ModelShape) -> int:
    """Bytes of the shard file: known, or to the byte from the shapes (but for `pruned`, see `pruned_shape`)."""
    if codec == DROPPED:
        return 0
    if codec in block.sizes:
        return block.sizes[codec][0]
    if codec not in block.found:
        block.found[codec] = _file_bytes(stored_layout(block, codec, model), None if codec == EXACT else {"codec": codec})
    return block.found[codec]


def delta_bytes(blocks: Sequence[BlockShape], codec: str) -> int:
    """Bytes of a delta over these blocks before the lossless coding."""
    layout = expected_layout({name: shape for block in blocks for name, shape in block.tensors.items()}, codec)
    return _file_bytes([(name, dtype, shape) for name, (dtype, shape) in layout.items()], {"codec": codec})


def _file_bytes(layout: Layout, metadata: Mapping[str, str] | None) -> int:
    return len(pack_header(layout, metadata)) + sum(tensor_nbytes(dtype, shape) for _, dtype, shape in layout)


def updated(block: BlockShape) -> BlockShape:
    """The block at its next version: float32 from its first delta on, and no shard of it is known."""
    return replace(block, itemsize=4, sizes={}, version=block.version + 1)


def compact(codecs: Mapping[str, str]) -> dict[str, list[str]]:
    """codec → blocks, in model order."""
    pairs = sorted((codec, place, name) for place, (name, codec) in enumerate(codecs.items()))
    return {codec: [name for *_, name in group] for codec, group in groupby(pairs, key=lambda pair: pair[0])}
