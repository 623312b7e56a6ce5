"""Block influence: how much a layer changes what passes through it, by which policies choose the layers to go without."""

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedcybgd.coordinator.domain.jobs.measurements import InfluencePayload, InfluenceResult
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.streaming import Streamed
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.models.batches import plain_forward


class _PastTheStack(Exception):
    """The last layer has run; the rest of the model is not there."""


class _Passage:
    """The hidden states at a block's entry, and what became of them, summed over tokens."""

    def __init__(self) -> None:
        self.entered: Tensor | None = None
        self.cosines = 0.0
        self.tokens = 0.0

    def leave(self, left: Tensor, mask: Tensor) -> None:
        assert self.entered is not None
        cosine = functional.cosine_similarity(self.entered.double(), left.double(), dim=-1)
        # Padding is no part of the text; a model that lays out its tokens in another way has none.
        weight = mask.double() if mask.shape == cosine.shape else torch.ones_like(cosine)
        self.cosines += float((cosine * weight).sum())
        self.tokens += float(weight.sum())
        self.entered = None


def influence(store: EngineStore, payload: InfluencePayload) -> InfluenceResult:
    """BI = 1 - E[cos(h_in, h_out)] over the tokens of the calibration rows, for every block of layers (ShortGPT, arXiv 2403.03853, eq. 1).

    Float32. Memory: the weights of one layer, the embeddings' rows that are looked up, the activations of one batch.
    """
    began = time.monotonic()
    rows = CalibrationRows(store, payload)
    streamed = Streamed(store, rows.config, payload.task)
    layers = [ref for ref in payload.blocks if ref.block.startswith("layers.")]
    for ref in payload.blocks:
        if ref.block == "embeddings":
            streamed.put_for_lookup(ref)
    passages = {ref.block: _Passage() for ref in layers}
    mask = torch.ones(0)
    for ref in layers:
        streamed.stream(ref)
        modules, passage = streamed.layers(ref.block), passages[ref.block]

        def enter(_module: Any, args: Any, kwargs: Any, passage: _Passage = passage) -> None:
            passage.entered = args[0] if args else kwargs["hidden_states"]

        def leave(_module: Any, _args: Any, output: Any, passage: _Passage = passage, last: bool = ref is layers[-1]) -> None:
            passage.leave(output[0] if isinstance(output, tuple) else output, mask)
            if last:
                raise _PastTheStack

        modules[0].register_forward_pre_hook(enter, with_kwargs=True)
        modules[-1].register_forward_hook(leave)
    with torch.inference_mode():
        for batch in rows.batches():
            mask = batch.mask
            try:
                plain_forward(streamed.model, batch)
            except _PastTheStack:
                pass
    return InfluenceResult(
        influence={name: 1 - p.cosines / max(p.tokens, 1) for name, p in passages.items()},
        rows=len(rows),
        tokens=int(max(p.tokens for p in passages.values())),
        seconds=time.monotonic() - began,
    )
