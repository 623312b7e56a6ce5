"""Every kind of job, in one line each: its lane, what it takes and gives, and what its failure means.

What the engine does for it is named in engine/entries.py, what becomes of it in services/outcomes.py; a test looks that no kind is forgotten.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.candidates import ConcludePayload, ConcludeResult
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, Lane, OnFailure
from fedcybgd.coordinator.domain.jobs.measurements import (
    EvaluatePayload,
    EvaluateResult,
    FidelityPayload,
    FidelityResult,
    ImportancePayload,
    ImportanceResult,
    InfluencePayload,
    InfluenceResult,
)
from fedcybgd.coordinator.domain.jobs.mending import MendPayload, MendResult
from fedcybgd.coordinator.domain.jobs.payloads import (
    AdmitPayload,
    AdmitResult,
    ApplyPayload,
    ApplyResult,
    EncodePayload,
    EncodeResult,
    ExportPayload,
    ExportResult,
    GatePayload,
    GateResult,
    ImportPayload,
    ImportResult,
    PreparePayload,
    PrepareResult,
    RestorePayload,
    RestoreResult,
)

P = TypeVar("P", bound=BaseModel, covariant=True)
R = TypeVar("R", bound=BaseModel, covariant=True)
MOST_DEATHS = 3
"""Engines that may die under a job before that counts as its failure. A coordinator that stops or is killed is not held against it."""


@dataclass(frozen=True)
class JobType(Generic[P, R]):
    kind: JobKind
    lane: Lane | None
    """None: it never waits, it is asked for in the middle of another"""
    payload: type[P]
    result: type[R]
    on_failure: OnFailure

    def payload_of(self, value: BaseModel) -> P:
        assert isinstance(value, self.payload), f"{value!r:.60} is no {self.payload.__name__}"
        return value

    def result_of(self, value: BaseModel) -> R:
        assert isinstance(value, self.result), f"{value!r:.60} is no {self.result.__name__}"
        return value


@dataclass(frozen=True)
class Done(Generic[P, R]):
    """What came of a job."""

    subject: str
    """id of the run or model that it was for"""
    payload: P
    result: R
    now: datetime


@dataclass(frozen=True)
class Failed(Generic[P]):
    """Why nothing came of a job."""

    kind: JobKind
    subject: str
    payload: P
    code: str
    message: str
    now: datetime


ADMIT = JobType(JobKind.ADMIT, Lane.QUICK, AdmitPayload, AdmitResult, OnFailure.REPEATED)
APPLY = JobType(JobKind.APPLY, Lane.QUICK, ApplyPayload, ApplyResult, OnFailure.REPEATED)
GATE = JobType(JobKind.GATE, Lane.QUICK, GatePayload, GateResult, OnFailure.REPEATED)
ENCODE = JobType(JobKind.ENCODE, Lane.QUICK, EncodePayload, EncodeResult, OnFailure.PAUSES)
RESTORE = JobType(JobKind.RESTORE, Lane.QUICK, RestorePayload, RestoreResult, OnFailure.ENDS)
IMPORT = JobType(JobKind.IMPORT, Lane.SLOW, ImportPayload, ImportResult, OnFailure.ENDS)
PREPARE = JobType(JobKind.PREPARE, Lane.SLOW, PreparePayload, PrepareResult, OnFailure.ENDS)
INFLUENCE = JobType(JobKind.INFLUENCE, Lane.SLOW, InfluencePayload, InfluenceResult, OnFailure.ENDS)
IMPORTANCE = JobType(JobKind.IMPORTANCE, Lane.SLOW, ImportancePayload, ImportanceResult, OnFailure.GOES_ON)
EXPORT = JobType(JobKind.EXPORT, Lane.SLOW, ExportPayload, ExportResult, OnFailure.ENDS)
EVALUATE = JobType(JobKind.EVALUATE, Lane.SLOW, EvaluatePayload, EvaluateResult, OnFailure.GOES_ON)
LOSS = JobType(JobKind.LOSS, Lane.SLOW, EvaluatePayload, EvaluateResult, OnFailure.GOES_ON)
FIDELITY = JobType(JobKind.FIDELITY, Lane.SLOW, FidelityPayload, FidelityResult, OnFailure.GOES_ON)
CONCLUDE = JobType(JobKind.CONCLUDE, Lane.SLOW, ConcludePayload, ConcludeResult, OnFailure.ENDS)
MEND = JobType(JobKind.MEND, None, MendPayload, MendResult, OnFailure.ENDS)

JOBS: Mapping[JobKind, JobType[BaseModel, BaseModel]] = {
    job.kind: job
    for job in (
        ADMIT,
        APPLY,
        GATE,
        ENCODE,
        RESTORE,
        IMPORT,
        PREPARE,
        INFLUENCE,
        IMPORTANCE,
        EXPORT,
        EVALUATE,
        LOSS,
        FIDELITY,
        CONCLUDE,
        MEND,
    )
}


def kinds_that(on_failure: OnFailure) -> tuple[JobKind, ...]:
    return tuple(job.kind for job in JOBS.values() if job.on_failure == on_failure)
