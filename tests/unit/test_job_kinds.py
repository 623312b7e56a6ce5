"""Every kind of job is whole: what it takes and gives, who does it, and what becomes of it."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import get_type_hints

import pytest
from pydantic import BaseModel

from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, Lane, OnFailure
from fedcybgd.coordinator.domain.jobs.payloads import EncodeResult, ExportPayload, ImportPayload
from fedcybgd.coordinator.domain.jobs.registry import JOBS
from fedcybgd.coordinator.engine.entries import ENTRIES
from fedcybgd.coordinator.services.outcomes import OUTCOMES, Outcome
from fedcybgd.shared.contract.manifests import FileRef


def entry(kind: JobKind) -> Callable[..., object]:
    module, _, name = ENTRIES[kind].partition(":")
    found: Callable[..., object] = getattr(import_module(f"fedcybgd.coordinator.engine.{module}"), name)
    return found


def test_no_kind_is_forgotten() -> None:
    assert set(JOBS) == set(ENTRIES) == set(JobKind)
    assert set(OUTCOMES) == {kind for kind, job in JOBS.items() if job.lane is not None}
    assert {job.lane for job in JOBS.values()} == {*Lane, None}


@pytest.mark.parametrize("kind", list(JobKind))
def test_the_engine_takes_and_gives_what_is_declared(kind: JobKind) -> None:
    function, declared = entry(kind), JOBS[kind]
    assert declared.kind == kind
    hints = get_type_hints(function)
    taken = hints[list(inspect.signature(function).parameters)[1]]
    assert issubclass(declared.payload, taken)
    assert hints["return"] is declared.result


@pytest.mark.parametrize("kind", list(OUTCOMES))
def test_what_becomes_of_it_is_of_this_kind(kind: JobKind) -> None:
    outcome = OUTCOMES[kind]
    assert isinstance(outcome, Outcome)
    assert outcome.of is JOBS[kind]


def test_the_failure_of_a_measurement_stops_nobody() -> None:
    goes_on = {kind for kind, job in JOBS.items() if job.on_failure == OnFailure.GOES_ON}
    assert goes_on == {JobKind.EVALUATE, JobKind.LOSS, JobKind.FIDELITY, JobKind.IMPORTANCE}
    assert {kind for kind, job in JOBS.items() if job.on_failure == OnFailure.REPEATED} == {JobKind.ADMIT, JobKind.APPLY, JobKind.GATE}


# ---- the row of a job ----------------------------------------------------------------------------------------------

EXPORT = ExportPayload(after_rounds=1, task="causal-lm", files=[FileRef(name="f", digest="0" * 64, size=1)], blocks=[])


def test_a_row_gives_back_the_payload_of_its_kind() -> None:
    job = Job(kind=JobKind.EXPORT, payload=EXPORT)
    assert job.payload == EXPORT
    assert job.payload_json["after_rounds"] == 1
    assert job.result is None


def test_a_payload_of_an_older_version_may_have_what_is_gone() -> None:
    job = Job(kind=JobKind.EXPORT, payload=EXPORT)
    job.payload_json = job.payload_json | {"gone": 1}
    assert job.payload == EXPORT


@pytest.mark.parametrize(("field", "value"), [("payload", ImportPayload(source="x")), ("result", EncodeResult(shards=[])), ("result", {})])
def test_another_kinds_value_is_not_let_in(field: str, value: BaseModel) -> None:
    job = Job(kind=JobKind.EXPORT, payload=EXPORT)
    with pytest.raises(TypeError, match="is not of the type of this job"):
        setattr(job, field, value)
