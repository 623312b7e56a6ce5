"""Corrections (after BREAD, NeurIPS 2025): what an expanded visit trains of blocks that stay frozen, merged into them afterwards."""

from collections.abc import Collection, Mapping, Sequence

from fedcybgd.coordinator.domain.model_blocks import TensorShape
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.shared.contract.adapters import factors_of
from fedcybgd.shared.contract.training import Corrections


def corrections_of(spec: RunFile, seat: Seat, blocks: Mapping[str, Sequence[TensorShape]], visited: Collection[str]) -> Corrections | None:
    """What a visit corrects; None: nothing. `blocks` are all in the order of the model, with their tensors; `visited` are those that the run visits.

    What a visit trains gets no corrections, and what the run leaves as it is gets none either.
    """
    said = spec.corrections
    if said is None or seat.head_start != "fresh":
        return None
    trained = {*seat.blocks, *spec.schedule.always}
    names = list(blocks)
    first = 0 if said.layers == "all" else min(names.index(name) for name in trained)
    frozen = [name for name in names[first:] if name in visited and name not in trained]
    matrices = [tensor.name for name in frozen for tensor in blocks[name] if tensor.linear]
    if not matrices:
        return None
    rate = said.learning_rate * spec.train.learning_rate_decay**seat.cycle
    return Corrections(rank=said.rank, scale=said.scale, learning_rate=rate, matrices=matrices)


def factor_shapes(corrections: Corrections, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name → shape of all factors of a visit; `shapes` has those of the matrices."""
    found: dict[str, tuple[int, ...]] = {}
    for weight in corrections.matrices:
        (left, right), (rows, columns) = factors_of(weight), shapes[weight]
        found |= {left: (rows, corrections.rank), right: (corrections.rank, columns)}
    return found
