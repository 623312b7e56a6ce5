"""How long a row may be: by the model's tables of positions and by its configuration."""

import torch
from torch import nn


def usable_positions(model: nn.Module) -> int | None:
    """Tokens of the longest row that `model` takes; None where nothing bounds it.

    A table may keep its first rows for other uses: RoBERTa and its kin count from behind the padding's own row, OPT from its offset.
    """
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    found = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    limits = [value for value in found if isinstance(value, int) and value > 0]
    for name, module in model.named_modules():
        if _of_positions(name.rpartition(".")[2]) and (rows := _rows(module)) is not None:
            padding = module.padding_idx
            limits.append(rows - (padding + 1 if isinstance(padding, int) else getattr(module, "offset", 0)))
    return min(limits, default=None)


def _rows(module: nn.Module) -> int | None:
    """Of a table of embeddings; I-BERT's is of a class of its own."""
    weight = getattr(module, "weight", None)
    return weight.shape[0] if hasattr(module, "padding_idx") and isinstance(weight, torch.Tensor) and weight.ndim == 2 else None


def _of_positions(leaf: str) -> bool:
    return leaf == "wpe" or ("pos" in leaf and "rel" not in leaf)
