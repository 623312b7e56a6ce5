"""What a round adds to a block: its deltas with the weights of the method, and of a head those of its labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedcybgd.coordinator.domain.aggregate import Aggregate, chosen
from fedcybgd.coordinator.domain.jobs.payloads import Term
from fedcybgd.coordinator.domain.label_skew import by_label, moved_rows, row_weights
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.shared.contract.block_names import HEAD


@dataclass(frozen=True)
class VisitDelta:
    """An accepted delta by its digest, and the visit that it is of."""

    digest: str
    visit: str
    delivered: Delivered
    scale: float | None = None
    """of the corrections that it has of the block; None: the block itself was trained"""


def terms_of(spec: RunFile, block: str, deltas: Sequence[VisitDelta], seats: int) -> tuple[list[Term], Aggregate]:
    """In the order given: that of the seats, of which the round has so many.

    Corrections are averaged over the seats, damped, however many have come: so their sum never counts more than one visit.
    """
    if any(delta.scale is not None for delta in deltas):
        own = iter(terms_of(spec, block, [delta for delta in deltas if delta.scale is None], seats)[0])
        weight = spec.schedule.damping / seats
        return [next(own) if d.scale is None else Term(digest=d.digest, weight=weight, visit=d.visit, scale=d.scale) for d in deltas], "sum"
    if not deltas:
        return [], "sum"
    method = method_of(spec)
    weights = method.weights(spec, block, [delta.delivered for delta in deltas], seats)
    aggregate = chosen(method.aggregate, spec.admission.average, len(deltas))
    rows = None
    if block == HEAD and aggregate == "sum" and by_label(spec):
        total, each = sum(weights), [d.delivered for d in deltas]
        rows = row_weights([d.metrics.label_counts if d.metrics else None for d in each], total)
        rows = rows or row_weights(moved_rows([d.moved for d in each], weights, spec.task.num_labels or 0), total)
    found = rows or [[] for _ in deltas]
    terms = [Term(digest=d.digest, weight=w, visit=d.visit, rows=r) for d, w, r in zip(deltas, weights, found, strict=True)]
    return terms, aggregate
