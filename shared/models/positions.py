"""How long a row may be: by the model's tables of positions and by its configuration."""

from torch import nn


def usable_positions(model: nn.Module) -> int | None:
    """Tokens of the longest row that `model` takes; None where nothing bounds it.

    A table may keep its first rows for other uses: RoBERTa and its kin count from behind the padding's own row, OPT from its offset.
    """
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    found = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    limits = [value for value in found if isinstance(value, int) and value > 0]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _of_positions(name.rpartition(".")[2]):
            kept = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            limits.append(module.num_embeddings - kept)
    return min(limits, default=None)


def _of_positions(leaf: str) -> bool:
    return leaf == "wpe" or ("pos" in leaf and "rel" not in leaf)
