"""What of a run's model is not the added model's: parts that were made afresh; and a head that is kept for labels of other names."""

from collections.abc import Iterable, Mapping, Sequence

from fedcybgd.shared.contract.adapters import ADAPTERS

Shapes = Mapping[str, Sequence[int]]
"""Tensors of a block, or of a whole model, by name."""


def fresh_in(tensors: Shapes, available: Shapes) -> list[str]:
    """The tensors that the added model lacks, or has in another shape."""
    return [name for name, shape in tensors.items() if list(available.get(name, ())) != list(shape)]


def fresh_part(block: str, tensors: Shapes, available: Shapes) -> str | None:
    """What of a block is made afresh, and why, in a sentence; None where all of it is the added model's."""
    made = fresh_in(tensors, available)
    if not made:
        return None
    listed = ", ".join(
        f"{name} {list(tensors[name])}" + (f" where the model has {list(available[name])}" if name in available else "")
        for name in made[:4]
    )
    return f"{block} holds fresh, random weights ({listed})"


def notes(blocks: Iterable[tuple[str, Shapes]], available: Shapes, config: Mapping[str, object], labels: Sequence[str] | None) -> list[str]:
    """What an operator should know of a run's model, in sentences. `config` is the added model's, `labels` are the run's names of labels."""
    # Adapters are fresh in every run, and add nothing to a model before they are trained.
    parts = {name: fresh_part(name, tensors, available) for name, tensors in blocks if name != ADAPTERS}
    said = [part for part in parts.values() if part is not None]
    old = config.get("id2label")
    if labels is not None and isinstance(old, Mapping) and "head" in parts and parts["head"] is None:
        before = [str(old.get(str(index), old.get(index))) for index in range(len(labels))]
        if before != list(labels):
            said.append(
                f"head is the model's own, whose labels were {', '.join(before[:6])}; the run's are {', '.join(labels[:6])}, in this order"
            )
    return said
