"""Importance: how steep the loss is along the parameters of a block, by which a cycle may be ordered."""

import math
import time

from fedcybgd.coordinator.domain.jobs.measurements import ImportancePayload, ImportanceResult
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.fidelity import NotMeasurable, gradients, norm
from fedcybgd.coordinator.storage import EngineStore


def importance(store: EngineStore, payload: ImportancePayload) -> ImportanceResult:
    """The norm of the gradient of the calibration rows' mean loss by the parameters of each visited block, one block after another.

    In float32, in the real model. Memory: that of `fidelity.gradients`, a block at a time. Raises `NotMeasurable`.
    """
    began = time.monotonic()
    rows = CalibrationRows(store, payload)
    found: dict[str, float] = {}
    for block in payload.visited:
        for batch in gradients(store, rows, payload.task, block, payload.blocks, batch_size=max(1, len(rows))):
            found[block] = norm(batch.gradient) / batch.predictions
        if not math.isfinite(found.get(block, math.nan)):
            raise NotMeasurable(f"the gradient of {block} is not finite on the calibration rows, or there is none", block=block)
    return ImportanceResult(importance=found, rows=len(rows), seconds=time.monotonic() - began)
