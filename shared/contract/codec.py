"""The codec of a block, by its name: exact, int8, int4, pruned:N, or dropped where it does not travel at all."""

EXACT = "exact"
PRUNED = "pruned"
DROPPED = "dropped"


def kind_of(codec: str) -> str:
    """A codec without its percentage."""
    return codec.partition(":")[0]


def percent_of(codec: str) -> int:
    """How much of a layer's width is gone; 0 unless it is pruned."""
    return int(codec.partition(":")[2] or 0)
