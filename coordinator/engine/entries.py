"""The entry of the process that engine functions run in."""

import ctypes
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.storage import EngineStore, StoreFull
from fedcybgd.shared.files.disk import says_full
from fedcybgd.shared.host import imports

ENTRIES: Mapping[JobKind, str] = {
    JobKind.ADMIT: "admit:admit",
    JobKind.APPLY: "apply:apply",
    JobKind.GATE: "gate:gate",
    JobKind.ENCODE: "encode:encode",
    JobKind.IMPORT: "import_model:import_model",
    JobKind.PREPARE: "prepare:prepare",
    JobKind.INFLUENCE: "influence:influence",
    JobKind.IMPORTANCE: "importance:importance",
    JobKind.EXPORT: "export:export",
    JobKind.EVALUATE: "evaluate:evaluate",
    JobKind.LOSS: "evaluate:evaluate",
    JobKind.FIDELITY: "fidelity:fidelity",
    JobKind.RESTORE: "restore:restore",
    JobKind.CONCLUDE: "candidates:conclude",
    JobKind.MEND: "mend:mend",
}
"""Module and function of what does a job; it takes the store and a payload of the kind's type, and gives a result of it."""
M_MMAP_THRESHOLD = -3
"""glibc's malloc.h"""
RETURNED_BYTES = 1 << 18
"""Allocations from this size on are returned to the system when they are freed."""


def warm_up(threads: int, device: str = "cpu") -> int:
    """Import torch and the code of models before the first job asks for it; returns the process id. Raises `CardMissing` once all is done."""
    with imports.at_once():
        import torch

        torch.set_num_threads(threads)
        _return_freed_memory()
        for kind in JobKind:
            _function(kind)
        from fedcybgd.coordinator.engine.device import measure_on
        from fedcybgd.shared.models.assembly import import_model_code

        import_model_code()
    measure_on(device)
    return os.getpid()


def _return_freed_memory() -> None:
    """Have malloc keep nothing large. Left to itself, glibc learns to keep up to 32 MB: streaming a model of 1.1B parameters layer by layer
    then held 1.3 GB of its own, where a layer and its activations are 0.4 GB.
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
    except (AttributeError, OSError):
        pass  # only glibc has it


def run(kind: str, payload: BaseModel, store: EngineStore) -> BaseModel:
    """Do one job: `payload` and the answer are of the types of its kind (domain/jobs/registry.py)."""
    try:
        return _function(JobKind(kind))(store, payload)
    except Exception as error:
        if says_full(error) and not isinstance(error, StoreFull):
            raise StoreFull("a disk of the coordinator is full") from error
        raise


def _function(kind: JobKind) -> Callable[[EngineStore, BaseModel], BaseModel]:
    module, _, name = ENTRIES[kind].partition(":")
    return cast(Callable[[EngineStore, BaseModel], BaseModel], getattr(import_module(f"fedcybgd.coordinator.engine.{module}"), name))
