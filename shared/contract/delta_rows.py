"""Which tensors a delta's file has where only some rows of a table travel: those that were trained; the others are as they were.

`name::rows` I32 has the numbers of the rows, ascending and each once, and `name` is the matrix of these rows, in any codec.
"""

from collections.abc import Mapping, Sequence

from fedcybgd.shared.contract.delta_layout import expected_layout

ROWS = "::rows"


def layout_by_rows(shapes: Mapping[str, Sequence[int]], codec: str, rows: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """As `expected_layout`; `rows` says of how many rows the delta is, for tables that travel so."""
    few = {name: (rows[name], *shape[1:]) if name in rows else tuple(shape) for name, shape in shapes.items()}
    return expected_layout(few, codec) | {name + ROWS: ("I32", (count,)) for name, count in rows.items()}


def most_of_delta(shard: int) -> int:
    """Bytes of a delta before packing, at the most: in float32, with the numbers of its rows, for a shard of so many bytes."""
    return shard + shard // 8 + (1 << 20)
