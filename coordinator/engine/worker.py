"""The entry of the process that engine functions run in."""

import ctypes
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from coordinator.domain.job import (
    AdmitPayload,
    ApplyPayload,
    EncodePayload,
    EvaluatePayload,
    ExportPayload,
    ImportPayload,
    JobKind,
    PreparePayload,
)
from coordinator.domain.measurements import FidelityPayload, InfluencePayload
from coordinator.domain.mending import MEND, MendPayload
from coordinator.storage import open_store

M_MMAP_THRESHOLD = -3
"""glibc's malloc.h"""
RETURNED_BYTES = 1 << 18
"""Allocations from this size on are returned to the system when they are freed."""


def warm_up(threads: int) -> int:
    """Import torch and the code of models before the first job asks for it; returns the process id."""
    import torch

    torch.set_num_threads(threads)
    _return_freed_memory()
    import coordinator.engine.admit
    import coordinator.engine.apply
    import coordinator.engine.encode
    import coordinator.engine.evaluate
    import coordinator.engine.export
    import coordinator.engine.fidelity
    import coordinator.engine.import_model
    import coordinator.engine.influence
    import coordinator.engine.mend
    import coordinator.engine.prepare  # noqa: F401
    from shared.assembly import import_model_code

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
    from coordinator.engine.admit import admit
    from coordinator.engine.apply import apply
    from coordinator.engine.encode import encode
    from coordinator.engine.evaluate import evaluate
    from coordinator.engine.export import export
    from coordinator.engine.fidelity import fidelity
    from coordinator.engine.import_model import import_model
    from coordinator.engine.influence import influence
    from coordinator.engine.mend import mend
    from coordinator.engine.prepare import prepare

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
