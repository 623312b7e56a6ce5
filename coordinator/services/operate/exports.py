"""Exports: the present model of a run, joined to a directory of files."""

import re
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Block, Job, Model, Run
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState
from fedcybgd.coordinator.domain.jobs.payloads import ExportPayload, ExportResult, Restoration
from fedcybgd.coordinator.domain.jobs.registry import EXPORT, Failed
from fedcybgd.coordinator.domain.model_card import CardFacts, model_card
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.operate import restorations
from fedcybgd.coordinator.services.operate.restorations import rounds_of
from fedcybgd.coordinator.services.records import jobs, ledgers
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.adapters import ADAPTERS
from fedcybgd.shared.contract.run_views import ExportEntry
from fedcybgd.shared.contract.words import ExportForm

EXPORTS = Order(Job.created_at, Job.id, newest_first=True)
EXPORT_ROWS = select(Job.id, Job.state, Job.created_at, Job.error, Job.result_json).where(
    Job.subject == bindparam("run"), Job.kind == JobKind.EXPORT, Job.state.in_(list(JobState))
)
"""Made once: that costs more than asking."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class RunNotPrepared(Conflict):
    code = "run_not_prepared"


class NoAdapters(Conflict):
    """Adapters are to be exported of a run that has none."""

    code = "no_adapters"


def report_failed(session: Session, failed: Failed[ExportPayload]) -> None:
    record(session, failed.now, "error", failed.code, f"{failed.kind} failed: {failed.message}", run_id=failed.subject)


def request_export(
    session: Session, name: str, now: datetime, form: ExportForm = "merged", after_rounds: int | None = None, best: bool = False
) -> Job:
    """Have a model joined to a directory of files; works in every state once the run is prepared.

    The present one, or as it was after so many rounds, or when it scored best. Raises `RoundUnknown`, `NeverScored`, `VersionsGone`.
    """
    run = queries.run_by_name(session, name)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} has no model yet")
    model, blocks = session.get_one(Model, run.model_id), queries.blocks_of(session, run.id)
    if form == "peft":
        if run.spec.adapters is None:
            raise NoAdapters(f"run {run.name} has no adapters, for its method is {run.spec.method}: only a merged export of it can be made")
        blocks = _beside(model, blocks)
    refs, again = queries.shard_refs(blocks), list[Restoration]()
    wanted = rounds_of(session, run, None if best else after_rounds) if best or after_rounds is not None else run.rounds_done
    if wanted < run.rounds_done:
        again = restorations.after(session, run, wanted, {ref.block: ref for ref in refs})
        older = {block.target.block: block.target for block in again}
        refs = [older.get(ref.block, ref) for ref in refs]
    payload = ExportPayload(
        after_rounds=wanted, task=run.spec.task.kind, files=run.files, blocks=refs,
        card=model_card(_facts(session, run, model, form, wanted)), form=form,
        base=model.source if HUB_ID.fullmatch(model.source) else None, restorations=again,
    )  # fmt: skip
    return jobs.enqueue(session, EXPORT, run.id, payload, now)


def _facts(session: Session, run: Run, model: Model, form: ExportForm, after_rounds: int) -> CardFacts:
    ended = run.conclusion if after_rounds == run.rounds_done else None
    return CardFacts(
        run=run.name, base=model.name, base_blocks=model.blocks, spec=run.spec,
        rounds_done=after_rounds, rounds_total=run.rounds_total, agents=len(run.participants),
        scores=[(e.after_rounds, e.metrics) for e in scores.of_run(session, run) if e.after_rounds <= after_rounds],
        sent=ledgers.bytes_of(ledgers.totals(session, run.id)), whole_model_bytes=sum(block.size for block in model.blocks),
        made_with=version("fedcybgd"), form=form, kept=ended.score if ended is not None else None,
        temperature=ended.calibration.temperature if ended is not None and ended.calibration is not None and ended.is_calibrated else None,
        head=queries.final_score(session, anchor) if (anchor := queries.anchor_of(session, run.id)) is not None else None,
    )  # fmt: skip


def _beside(model: Model, blocks: Sequence[Block]) -> list[Block]:
    """What the added model does not have: what was trained, and what was made afresh."""
    there = {block.digest for block in model.blocks}
    return [b for b in blocks if b.version or b.name == ADAPTERS or (b.kind in ("pooler", "head") and b.digest not in there)]


def export_of(session: Session, name: str, job_id: str) -> ExportResult | None:
    """The files of an export, or None while it is being made."""
    run = queries.run_by_name(session, name)
    job = session.get(Job, job_id)
    if job is None or job.subject != run.id or job.kind != JobKind.EXPORT:
        raise NotFound(f"run {run.name} has no export {job_id!r}")
    if job.state == JobState.FAILED:
        raise Conflict(f"the export failed: {job.error}")
    return EXPORT.result_of(job.result) if job.result is not None else None


def listed(session: Session, name: str, page: Page) -> Listed[ExportEntry]:
    """Those of a run, the newest first."""
    return EXPORTS.page(session, EXPORT_ROWS, page, run=queries.run_id(session, name)).map(
        lambda row: ExportEntry(
            export_id=row.id, state=row.state, created_at=row.created_at, error=row.error,
            after_rounds=row.result_json["after_rounds"] if row.result_json is not None else None,
            files=row.result_json["files"] if row.result_json is not None else [],
        )
    )  # fmt: skip
