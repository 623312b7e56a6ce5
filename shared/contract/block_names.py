"""The names of blocks, without torch: which blocks a pattern means, and which layers a name holds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from fedcybgd.shared.contract.errors import PartitionError

HEAD = "head"
"""The block of what comes after the base model, for one task"""
LONGEST_MEAN = 20.0
"""No row of a classifier's head that is set to a class mean is longer: a logit of so much tells its label from others of MiniLM."""


def block_name(kind: str, index: int, per_block: int, length: int) -> str:
    """The name of block number `index` of its kind, in a stack of `length` layers."""
    if kind != "layer":
        return kind
    first, last = index * per_block, min((index + 1) * per_block, length) - 1
    return f"layers.{first}" if first == last else f"layers.{first}-{last}"


def select(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The block names that `patterns` mean, in model order: a name, `layers` for all layers, `layers.2-4` for a range, `all`.

    Raises `PartitionError` for a pattern that means no block, or only a part of one.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if _means(pattern, name)}
        if cut := [name for name in names if name not in found and _overlaps(pattern, name)]:
            raise PartitionError(f"{pattern!r} cuts through {', '.join(cut)}; blocks are trained whole", blocks=list(names))
        if not found:
            raise PartitionError(f"{pattern!r} means no block of this model; its blocks are {', '.join(names)}", blocks=list(names))
        chosen |= found
    return [name for name in names if name in chosen]


def of_labels(shapes: Mapping[str, Sequence[int]], labels: int) -> str | None:
    """Of the tensors of a classifier's head the matrix with a row for each label: the last one of that many rows, for what it gives are logits."""
    return next((name for name, shape in reversed(list(shapes.items())) if len(shape) == 2 and shape[0] == labels), None)


def touches(pattern: str, name: str) -> bool:
    """Whether a block has to do with what `pattern` means: as in `select`, but a part of a block is enough; * and ? are wildcards."""
    return _means(pattern, name) or _overlaps(pattern, name) or fnmatchcase(name, pattern)


def layer_range(text: str) -> tuple[int, int] | None:
    """`layers.2-4` → (2, 4), `layers.3` → (3, 3); None for the name of another block."""
    match = re.fullmatch(r"layers\.(\d+)(?:-(\d+))?", text)
    return (int(match[1]), int(match[2] or match[1])) if match else None


def layers_of(block: str) -> range:
    """The layers of a block by their numbers: `layers.2-4` → 2, 3, 4; none for a block of another kind."""
    found = layer_range(block)
    return range(found[0], found[1] + 1) if found else range(0)


def layer_of(weight: str) -> int | None:
    """The layer of a matrix by its canonical name, where that has one: the first number among its words, `encoder.layer.3.output.weight` → 3."""
    return next((int(word) for word in weight.split(".") if re.fullmatch(r"[0-9]{1,6}", word)), None)


def _means(pattern: str, name: str) -> bool:
    if pattern in ("all", name):
        return True
    if not name.startswith("layers."):
        return False
    if pattern == "layers":
        return True
    wanted, have = layer_range(pattern), layer_range(name)
    return wanted is not None and have is not None and wanted[0] <= have[0] and have[1] <= wanted[1]


def _overlaps(pattern: str, name: str) -> bool:
    wanted, have = layer_range(pattern), layer_range(name)
    return wanted is not None and have is not None and wanted[0] <= have[1] and have[0] <= wanted[1]
