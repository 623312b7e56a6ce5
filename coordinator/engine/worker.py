"""The entry of the process that engine functions run in."""

import ctypes
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedcybgd.coordinator.domain.job import (
    AdmitPayload,
    ApplyPayload,
    EncodePayload,
    EvaluatePayload,
    ExportPayload,
    ImportPayload,
    JobKind,
    PreparePayload,
)
from fedcybgd.coordinator.domain.measurements import FidelityPayload, InfluencePayload
from fedcybgd.coordinator.domain.mending import MEND, MendPayload
from fedcybgd.coordinator.storage import open_store

M_MMAP_THRESHOLD = -3
"""glibc's malloc.h"""
RETURNED_BYTES = 1 << 18
"""Allocations from this size on are returned to the system when they are freed."""


def warm_up(threads: int) -> int:
    """Import torch and the code of models before the first job asks for it; returns the process id."""
    import torch

    torch.set_num_threads(threads)
    _return_freed_memory()
    import fedcybgd.coordinator.engine.admit
    import fedcybgd.coordinator.engine.apply
    import fedcybgd.coordinator.engine.encode
    import fedcybgd.coordinator.engine.evaluate
    import fedcybgd.coordinator.engine.export
    import fedcybgd.coordinator.engine.fidelity
    import fedcybgd.coordinator.engine.import_model
    import fedcybgd.coordinator.engine.influence
    import fedcybgd.coordinator.engine.mend
    import fedcybgd.coordinator.engine.prepare  # noqa: F401
    from fedcybgd.shared.models.assembly import import_model_code

    import_model_code()
    return os.getpid()


def _return_freed_memory() -> None:
    """Have malloc keep nothing large. Left to itself, glibc learns to keep up to 32 MB: streaming a model of 1.1B parameters layer by layer
    then held 1.3 GB of its own, where a layer and its activations are 0.4 GB.
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
    except (AttributeError, OSError):
        pass  # only glibc has it


def run(kind: str, payload: dict[str, Any], blobs: str) -> dict[str, Any]:
    """Do one job: `payload` and the answer are the JSON forms of the models in `domain/job.py`."""
    from fedcybgd.coordinator.engine.admit import admit
    from fedcybgd.coordinator.engine.apply import apply
    from fedcybgd.coordinator.engine.encode import encode
    from fedcybgd.coordinator.engine.evaluate import evaluate
    from fedcybgd.coordinator.engine.export import export
    from fedcybgd.coordinator.engine.fidelity import fidelity
    from fedcybgd.coordinator.engine.import_model import import_model
    from fedcybgd.coordinator.engine.influence import influence
    from fedcybgd.coordinator.engine.mend import mend
    from fedcybgd.coordinator.engine.prepare import prepare

    store = open_store(Path(blobs))
    if kind == MEND:
        return mend(store, MendPayload.model_validate(payload))
    result: BaseModel
    match JobKind(kind):
        case JobKind.ADMIT:
            result = admit(store, AdmitPayload.model_validate(payload))
        case JobKind.APPLY:
            result = apply(store, ApplyPayload.model_validate(payload))
        case JobKind.ENCODE:
            result = encode(store, EncodePayload.model_validate(payload))
        case JobKind.PREPARE:
            result = prepare(store, PreparePayload.model_validate(payload))
        case JobKind.IMPORT:
            result = import_model(store, ImportPayload.model_validate(payload))
        case JobKind.INFLUENCE:
            result = influence(store, InfluencePayload.model_validate(payload))
        case JobKind.FIDELITY:
            result = fidelity(store, FidelityPayload.model_validate(payload))
        case JobKind.EVALUATE | JobKind.LOSS:
            result = evaluate(store, EvaluatePayload.model_validate(payload))
        case JobKind.EXPORT:
            result = export(store, ExportPayload.model_validate(payload))
    return result.model_dump(mode="json")
