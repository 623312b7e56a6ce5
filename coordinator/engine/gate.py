"""Scores what a round would make of the model, before it counts."""

from collections.abc import Sequence

from fedcybgd.coordinator.domain.gate import GateVerdict, verdict
from fedcybgd.coordinator.domain.jobs.measurements import Calibration, EvaluatePayload
from fedcybgd.coordinator.domain.jobs.payloads import GatePayload, GateResult
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.engine.evaluate import NotFinite, evaluate
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import ShardRef


def gate(store: EngineStore, payload: GatePayload) -> GateResult:
    """Loss of the candidate; where it is out of proportion and several made it, what each of them alone would do. Memory: as `evaluate`."""
    losses = list(payload.losses)
    if not payload.known:
        losses.append(evaluate(store, _scoring(payload, payload.blocks)).loss)
    after = _loss(store, payload, payload.made.blocks)
    alone: dict[str, float | None] = {}
    members = payload.applied.assignments
    if len(members) > 1 and verdict(losses, after) != GateVerdict.FINE:
        for member in members:
            changes = [
                change.model_copy(update={"terms": mine, "aggregate": "sum"})
                for change in payload.applied.changes
                if (mine := [term for term in change.terms if term.visit == member])
            ]
            alone[member] = _loss(store, payload, [add_deltas(store, change)[0] for change in changes])
    return GateResult(losses=losses, after=after, alone=alone)


def _loss(store: EngineStore, payload: GatePayload, new: Sequence[ShardRef]) -> float | None:
    changed = {ref.block: ref for ref in new}
    try:
        return evaluate(store, _scoring(payload, [changed.get(ref.block, ref) for ref in payload.blocks])).loss
    except NotFinite:
        return None


def _scoring(payload: Calibration, blocks: list[ShardRef]) -> EvaluatePayload:
    taken = {name: getattr(payload, name) for name in EvaluatePayload.model_fields if name in Calibration.model_fields}
    return EvaluatePayload(**{**taken, "blocks": blocks, "after_rounds": 0})
