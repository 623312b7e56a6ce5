"""Estimates the peak memory of the training process in a visit, from shapes alone.

What is counted, and what of it is alive at once, follows agent/training (emulator, frozen, loss, checkpoints, optimizer, delta) and what
autograd keeps for a backward pass. Numbers per token are values of float32; rows of text are taken to be `max_length` tokens long,
since how long an agent's rows are stays with the agent: shorter rows take less. Two things are measured, not derived (on a CPU
with one thread, with glibc's MALLOC_MMAP_THRESHOLD_ fixed as the agent sets it; benchmarks/plan_accuracy.py repeats it):
the constants below, and that plain attention of ungated families keeps its weights twice.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.vocabulary import rows_held
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, corrections, delta_bytes, is_quantizable, shard_bytes
from fedcybgd.shared.contract.adapters import ADAPTERS, factors_of
from fedcybgd.shared.contract.block_names import layer_range, layers_of
from fedcybgd.shared.contract.codec import DROPPED, EXACT, percent_of

FLOAT = 4
INTERPRETER = 360_000_000
"""Private bytes of the training process before its first visit: Python, torch and transformers (VmData). They count towards a
declared limit; they are not part of what a visit reports."""
CONTEXT = 1_200_000_000
"""What the driver takes of a card for a process that trains, and for itself: measured on one of 80 GB."""
BESIDE = {"cpu": INTERPRETER, "cuda": CONTEXT}
WORKSPACE = 68_000_000
"""What products on a card are given to work in, for the forward and for the backward pass; a visit reports it."""
VISIT = 4_000_000
"""What the first step loads and makes beside tensors."""
TOKENIZER = 3_000_000
TOKENIZER_ENTRY = 500
"""Bytes for an entry of the vocabulary."""
ROW_TOKEN = 186
"""Bytes that an encoded token of the agent's rows takes: numbers in Python lists, and what encoding them left."""
IMAGES = 64 << 20
"""Bytes of pixels that are in memory at the most, as in shared/models/image_rows.py."""
SHORT = 256
"""Tokens up to which the agent takes plain attention on a CPU, as in agent/training/visitor.py."""
CHECKPOINT = 256 << 20
"""Bytes of activations from which the agent computes them twice, as in agent/training/checkpoints.py."""
CHUNKED = 1 << 23
"""Logits from which, and in chunks of which, they are computed, as in agent/training/loss.py."""
DENSE, DENSE_ELSEWHERE = 1 << 22, 1 << 26
"""Values of a quantized weight that are dense at a time on a CPU, and on other devices, as in agent/training/frozen.py."""
PLAIN_LOGITS = 4
"""Copies of all logits that exist at once where they are not chunked: as they are, shifted, their logarithms, their gradient."""
HALF = 0.75
"""Bytes of activations in bfloat16 against float32: products are halved, norms and attention weights are not. Measured on a card."""
EMBEDDED = 3
"""Values of the hidden size that embeddings keep for a token: rows, their sum, and what enters the norm."""
TANH_GELU = frozenset({"gpt2", "gpt_bigcode", "gpt_neo", "gptj", "phi"})
"""Families whose activation is composed of Python steps that keep four values instead of one."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak. `phase` is where it is: the backward pass, the optimizer's step, or writing the delta."""

    phase: str
    parts: Mapping[str, int]
    """what it is made of: data, frozen, weights, moments, gradients, activations, working, delta"""
    untouched: int = 0
    """bytes of a table that are mapped, and never looked at"""
    beside: int = INTERPRETER
    """bytes that the process takes before its first visit"""

    @property
    def peak(self) -> int:
        """What a visit reports as `peak_memory_bytes`: beyond the process before its first visit."""
        return sum(self.parts.values())

    @property
    def whole(self) -> int:
        """What counts towards a limit: of private memory (RLIMIT_DATA on Linux; safetensors maps shards so that they count, too), or of a card."""
        return self.peak + self.untouched + self.beside


def estimate(
    spec: RunFile,
    model: ModelShape,
    blocks: Sequence[BlockShape],
    plan: Mapping[str, str],
    trained: Collection[str],
    device: str = "cpu",
    limit: int = 0,
    rows: int | None = None,
) -> Memory:
    """Peak of a visit that trains the blocks `trained`, with the others in the codecs of `plan`.

    `limit` is the agent's declared memory in bytes (0: none), which makes it save more; `rows` are the agent's rows, if
    somebody knows them. Agents are taken to leave `[training]` at its defaults, and not to use a row twice in a visit.
    """
    visit = _Visit(spec, model, blocks, plan, trained, device, limit, rows)
    always = {"data": _data(spec, model, rows) if device == "cpu" else 0, "frozen": visit.frozen(), "weights": FLOAT * visit.parameters}
    moments = visit.moments()
    after = sum(b.num_parameters for b in visit.opened if b.kind not in ("embeddings", "layer", ADAPTERS))
    phases = [
        *(("backward", {"moments": moments, "gradients": FLOAT * after, **parts}) for parts in visit.backward()),
        ("step", {"moments": moments, "gradients": visit.gradients(), "activations": visit.lowest()}),
        ("delta", {"delta": visit.delta() if device != "cuda" else 0}),  # a card's is made beside it
    ]
    none = dict.fromkeys(("moments", "gradients", "activations", "working", "delta"), 0)
    found = []
    for name, parts in phases:
        whole = always | none | parts
        whole["working"] += WORKSPACE if device == "cuda" else 0
        found.append(Memory(name, whole, visit.untouched, BESIDE.get(device, 0)))
    return max(found, key=lambda m: m.peak)


def _data(spec: RunFile, model: ModelShape, rows: int | None) -> int:
    if spec.task.kind == "image-classification":
        return VISIT + IMAGES
    encoded = ROW_TOKEN * spec.task.max_length * (rows or 0)
    return VISIT + TOKENIZER + TOKENIZER_ENTRY * model.vocabulary + encoded


class _Visit:
    def __init__(
        self, spec: RunFile, model: ModelShape, blocks: Sequence[BlockShape], plan: Mapping[str, str], trained: Collection[str], device: str,
        limit: int, rows: int | None,
    ) -> None:  # fmt: skip
        self.spec, self.model, self.blocks, self.plan, self.limit, self.device = spec, model, blocks, plan, limit, device
        self.opened = [*(b for b in blocks if b.name in trained), *corrections(spec, blocks, trained)]
        self.language = spec.task.kind == "causal-lm"
        self.tied = self.language and not any(b.kind == "head" for b in blocks)
        self.held = [self._few(b, rows) for b in self.opened]
        """what of the opened blocks is trained"""
        self.parameters = sum(b.num_parameters for b in self.held)
        few = ((b, h) for b, h in zip(self.opened, self.held, strict=True) if h is not b)
        self.untouched = sum((b.itemsize if self._as_stored(b) == EXACT else 1) * b.largest for b, _ in few) if device == "cpu" else 0
        self.width = model.row_tokens(spec)
        self.tokens = spec.train.batch_size * self.width
        self.eager = device == "cpu" and self.width <= SHORT
        half = spec.train.precision == "bfloat16" or (spec.train.precision == "auto" and device == "cuda")
        self.half, self.scale = half, FLOAT * (HALF if half else 1)
        # A CPU makes a weight dense in float32 and converts it.
        self.dense_itemsize = FLOAT // 2 if half and device == "cuda" else FLOAT

    def _few(self, block: BlockShape, rows: int | None) -> BlockShape:
        """A block as it is held: of the table that tokens are looked up in only their rows, unless it is tied to an output matrix."""
        tables = [name for name, shape in block.tensors.items() if len(shape) == 2 and math.prod(shape) == block.largest]
        if block.kind != "embeddings" or self.tied or not tables or self.spec.task.kind == "image-classification":
            return block
        size, width = block.tensors[tables[0]]
        few = min(size, rows_held(self.spec, self.model.vocabulary or size, rows))
        return replace(block, tensors={**block.tensors, tables[0]: (few, width)}, sizes={})

    def _as_stored(self, block: BlockShape) -> str:
        return self.plan.get(block.name, EXACT)

    def frozen(self) -> int:
        """Shards are mapped, and all their pages touched; on a CPU those of the trained blocks too, which they are copied from."""
        total = 0
        for block in self.blocks:
            codec = self._as_stored(block)
            if block in self.opened:
                total += shard_bytes(block, codec, self.model) if self.device == "cpu" else 0
            elif codec == EXACT and self.half:  # tables are not multiplied, and stay float32
                total += (FLOAT if block.kind == "embeddings" and not self.tied else FLOAT // 2) * block.num_parameters
            else:
                total += shard_bytes(block, codec, self.model) + self._dense_experts(block, codec)
        return total - self.untouched

    def _dense_experts(self, block: BlockShape, codec: str) -> int:
        """Matrices of all experts in one tensor are no module of their own, and so cannot stay quantized."""
        if codec not in ("int8", "int4"):
            return 0
        return sum(FLOAT * math.prod(shape) for shape in block.tensors.values() if len(shape) > 2 and is_quantizable(shape))

    def moments(self) -> int:
        if self.spec.train.optimizer == "adamw":
            return 2 * FLOAT * self.parameters
        return 2 * self.parameters + self.parameters // 64  # one scale for 256 values, twice

    def gradients(self) -> int:
        """All of them while their norm is taken; without clipping, the largest tensor's alone. Tied weights get two that are added."""
        twice = sum(b.largest for b in self.opened if b.kind == "embeddings") if self.tied else 0
        whole = self.parameters if self.spec.train.max_grad_norm is not None else max((b.largest for b in self.held), default=0)
        return FLOAT * (whole + twice)

    def backward(self) -> list[dict[str, int]]:
        """What is there at the output head, and at the worst layer: activations, and what exists for a moment beside them."""
        return [{**parts, "working": parts["working"] + self._halved()} for parts in self._passes()]

    def _halved(self) -> int:
        """What is trained, once more as it is multiplied with where that is bfloat16; of an output matrix its gradient, too."""
        if not self.half:
            return 0
        twice = max((b.largest for b in self.opened if b.kind == "head" and self.language), default=0)
        return FLOAT // 2 * (sum(b.num_parameters for b in self.opened if b.kind != "embeddings") + twice)

    def _passes(self) -> list[dict[str, int]]:
        kept, hidden = self._kept(), self.model.hidden
        below = EMBEDDED * hidden if any(b.kind == "embeddings" for b in self.opened) else 0
        if not self._is_checkpointed(len(kept)):
            all_of_it = round(self.scale * self.tokens * (below + sum(kept)))
            return [
                {"activations": all_of_it, "working": self._layer_working()},
                {"activations": all_of_it, "working": self._head_working()},
            ]
        # Layer j is computed again while what entered the layers 0 to j is kept.
        # That is what layers hand to each other, and it is float32 whatever products are computed in.
        worst = max(FLOAT * (place + 1) * hidden + self.scale * own for place, own in enumerate(kept))
        return [
            {"activations": round(self.tokens * (self.scale * below + worst)), "working": self._layer_working()},
            {"activations": round(self.tokens * (self.scale * below + FLOAT * len(kept) * hidden)), "working": self._head_working()},
        ]

    def lowest(self) -> int:
        """Bytes of activations that are there when the last gradients are."""
        kept = [EMBEDDED * self.model.hidden] if any(b.kind == "embeddings" for b in self.opened) else self._kept()
        return round(self.scale * self.tokens * kept[0]) if kept else 0

    def _kept(self) -> list[int]:
        """Values a token that each layer keeps, from the lowest trained one up."""
        opened = {layer for b in self.blocks if b in self.opened or self._is_adapted(b) for layer in layers_of(b.name)}
        if any(b.kind == "embeddings" for b in self.opened):
            lowest = 0
        elif opened:
            lowest = min(opened)
        else:
            return []
        kept = []
        for block in self.blocks:
            span = layer_range(block.name)
            codec = self.plan.get(block.name, EXACT)
            if span is None or codec == DROPPED:
                continue
            share = 1 - percent_of(codec) / 100
            kept += [
                self._repeats() * _layer(self.model, self.width, layer in opened, self.eager, share)
                for layer in range(span[0], span[1] + 1)
                if layer >= lowest
            ]
        return kept

    def _is_adapted(self, block: BlockShape) -> bool:
        """Whether adapters, or corrections, are trained beside matrices of a block: their products keep what enters them, as trained ones do."""
        factors = next((b.tensors for b in self.opened if b.kind == ADAPTERS), {})
        return any(factors_of(name)[0] in factors for name in block.tensors)

    def _repeats(self) -> int:
        """How often a layer runs in a pass, in models whose layers share their weights."""
        layers = sum(span[1] - span[0] + 1 for b in self.blocks if (span := layer_range(b.name)))
        return max(1, self.model.layers // max(1, layers))

    def _is_checkpointed(self, layers: int) -> bool:
        model = self.model
        values = 12 * model.hidden + 3 * model.inner + (2 * model.heads * self.width if self.eager else 0)
        most = min(CHECKPOINT, self.limit // 4) if self.limit else CHECKPOINT
        return layers > 1 and FLOAT * self.tokens * layers * values > most

    def _layer_working(self) -> int:
        """The gradient of a layer's neurons, and its largest matrix while it is dense."""
        return round(self.scale * self.tokens * self.model.inner) + self.dense_itemsize * self._dense("layer") if self._kept() else 0

    def _head_working(self) -> int:
        if not self.language:
            return 0
        logits, rows = self.tokens * self.model.vocabulary, self.tokens * self.model.hidden
        if logits < CHUNKED:
            return PLAIN_LOGITS * FLOAT * logits
        # A quantized head is dense in pieces, and so are the logits that come of them.
        dense = self._dense("head" if any(b.kind == "head" for b in self.blocks) else "embeddings")
        piece = CHUNKED * min(1.0, dense / (self.model.hidden * self.model.vocabulary))
        return FLOAT * round(CHUNKED + 2 * rows + piece) + self.dense_itemsize * dense

    def _dense(self, kind: str) -> int:
        """Values of the largest quantized weight of these blocks that are dense at a time."""
        frozen = (b for b in self.blocks if b.kind == kind and b not in self.opened and self.plan.get(b.name) in ("int8", "int4"))
        return min(DENSE if self.device == "cpu" else DENSE_ELSEWHERE, max((b.largest for b in frozen), default=0))

    def delta(self) -> int:
        """The float32 difference of a block is kept until the block is done, its encoding until all are."""
        encoded = delta_bytes(self.held, self.spec.delta.codec)
        block = max((b.num_parameters for b in self.held), default=0)
        largest = max((b.largest for b in self.held), default=0)
        return encoded + FLOAT * (block + 2 * largest)


def _layer(model: ModelShape, width: int, trained: bool, eager: bool, share: float) -> int:
    """Values a token that a layer keeps for its backward pass. `share` of its width is left when it is pruned.

    Frozen products keep nothing; norms keep what enters them, attention its queries, keys, values and weights (or its result, where
    it is fused), a gated net three values a neuron. Trained products keep what enters them.
    """
    hidden, inner = model.hidden, round(share * model.inner)
    heads = round(share * model.heads)
    attention = heads * model.head_dim
    if model.gated:
        kept = 2 * hidden + 3 * attention + 3 * inner + (heads * width if eager else attention)
        return kept + (4 * hidden + attention + inner if trained else 0)
    neuron = 4 if model.family in TANH_GELU else 1
    kept = 2 * hidden + 3 * attention + neuron * inner + (2 * heads * width if eager else attention)
    return kept + (2 * hidden + attention + inner if trained else 0)
