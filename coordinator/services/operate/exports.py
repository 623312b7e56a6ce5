"""Exports: the present model of a run, joined to a directory of files."""

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.job import ExportPayload, ExportResult, JobKind, JobState
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record


class RunNotPrepared(Conflict):
    code = "run_not_prepared"


def report_failed(session: Session, job: Job) -> None:
    record(session, "error", job.error_code or f"{job.kind}_failed", f"{job.kind} failed: {job.error}", run_id=job.subject)


def request_export(session: Session, name: str) -> Job:
    """Have the present model joined to a directory of files; works in every state once the run is prepared."""
    run = queries.run_by_name(session, name)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} has no model yet")
    payload = ExportPayload(
        after_rounds=queries.rounds_closed(session, run.id), task=run.spec.task.kind,
        files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id)),
    )  # fmt: skip
    return jobs.enqueue(session, JobKind.EXPORT, run.id, payload.model_dump(mode="json"))


def export_of(session: Session, name: str, job_id: str) -> ExportResult | None:
    """The files of an export, or None while it is being made."""
    run = queries.run_by_name(session, name)
    job = session.get(Job, job_id)
    if job is None or job.subject != run.id or job.kind != JobKind.EXPORT:
        raise NotFound(f"run {run.name} has no export {job_id!r}")
    if job.state == JobState.FAILED:
        raise Conflict(f"the export failed: {job.error}")
    return ExportResult.model_validate(job.result) if job.result is not None else None
