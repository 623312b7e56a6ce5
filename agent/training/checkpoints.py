"""Activation checkpointing of the layers from the trained block up: below it nothing is kept anyway."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedcybgd.agent.training.overrides import forwards
from fedcybgd.agent.training.prefix import hidden_size

WORTHWHILE = 256 << 20
"""Bytes of activations from which `auto` computes them twice instead of keeping them; a quarter of the memory limit, if that is less."""


def checkpointed(layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Within it, these layers keep only what enters them, and are run once more in the backward pass.

    The same operations on the same numbers: gradients have the same bits. Layers must not draw random numbers (ours run
    without dropout).
    """
    return forwards([(layer, _twice(layer.forward)) for layer in layers])


def _twice(plain: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward


def to_checkpoint(above: Sequence[nn.Module], setting: str, each: int, limit: int) -> list[nn.Module]:
    """The layers to checkpoint of those from the lowest trained one up.

    `each` is what one of them keeps of the largest batch, in bytes, `limit` what training may take (0: no limit). `auto` keeps
    activations as long as they take less than WORTHWHILE and a quarter of `limit`. One layer alone is never checkpointed: it would
    need its activations at once again.
    """
    if setting == "off" or len(above) < 2:
        return []
    if setting == "on":
        return list(above)
    most = min(WORTHWHILE, limit // 4) if limit else WORTHWHILE
    return list(above) if len(above) * each > most else []


def activation_bytes(config: Any, tokens: int, width: int) -> int:
    """About what a frozen float32 layer keeps for its backward pass, of `tokens` tokens in rows of `width`, in bytes.

    Residuals, norms, queries, keys and values (12 × hidden), the parts of a gated feed-forward net (3 × intermediate), and attention
    weights, twice, where they exist.
    """
    hidden = hidden_size(config)
    inner = int(getattr(config, "intermediate_size", 0) or 4 * hidden)
    said = getattr(config, "num_attention_heads", 0) or 0
    heads = max(said) if isinstance(said, list) else int(said)  # a number for each stage
    plain_attention = getattr(config, "_attn_implementation", None) == "eager"
    return 4 * tokens * (12 * hidden + 3 * inner + (2 * heads * width if plain_attention else 0))
