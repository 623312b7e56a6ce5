"""The entry of the process that engine functions run in."""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import cast

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.engine import malloc
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
BY_PIECES = frozenset({JobKind.APPLY, JobKind.ENCODE})
"""Whose work is some rows of a tensor after others"""


@cache
def import_all() -> None:
    """Import torch, what does jobs and the code of models; no threads come of it, and nothing is computed."""
    malloc.return_freed()
    with imports.at_once():
        for kind in JobKind:
            _function(kind)
        from fedcybgd.shared.models.assembly import import_model_code

        import_model_code()


def warm_up(threads: int, device: str = "cpu") -> int:
    """Have everything imported before the first job asks for it; returns the process id. Raises `CardMissing` once all is done."""
    import_all()
    import torch

    from fedcybgd.coordinator.engine.device import measure_on

    torch.set_num_threads(threads)
    measure_on(device)
    return os.getpid()


def run(kind: str, payload: BaseModel, store: EngineStore) -> BaseModel:
    """Do one job: `payload` and the answer are of the types of its kind (domain/jobs/registry.py)."""
    try:
        with malloc.kept() if kind in BY_PIECES else nullcontext():
            return _function(JobKind(kind))(store, payload)
    except Exception as error:
        if says_full(error) and not isinstance(error, StoreFull):
            raise StoreFull("a disk of the coordinator is full") from error
        raise


def _function(kind: JobKind) -> Callable[[EngineStore, BaseModel], BaseModel]:
    module, _, name = ENTRIES[kind].partition(":")
    return cast(Callable[[EngineStore, BaseModel], BaseModel], getattr(import_module(f"fedcybgd.coordinator.engine.{module}"), name))
