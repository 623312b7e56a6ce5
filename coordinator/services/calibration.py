"""Measures on calibration rows: which layers matter, how faithful emulators are, and what a round did to the real model."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db import queries
from coordinator.db.base import utcnow
from coordinator.db.models import Assignment, Block, Evaluation, Fidelity, Job, Round, Run
from coordinator.domain.compression import UNMEASURABLE, Plan, plan_key
from coordinator.domain.job import EvaluatePayload, EvaluateResult, HeldOutRef, JobKind, JobState
from coordinator.domain.measurements import Calibration, FidelityPayload, FidelityResult, InfluencePayload, InfluenceResult
from coordinator.domain.run_file import RunFile
from coordinator.errors import Invalid
from coordinator.services import jobs, shards
from coordinator.services.events import record
from shared.digests import digest_of
from shared.protocol import Manifest

NO_SCORE: dict[str, Any] = {"loss": None, "accuracy": None, "rows": 0, "seconds": 0.0}
SKIPPED = {"code": "skipped", "message": "a newer score was wanted before this one began"}


class CalibrationMissing(Invalid):
    code = "calibration_missing"


def check(spec: RunFile) -> None:
    """Raises `CalibrationMissing` for a policy that cannot do without calibration rows where there are none."""
    compression = spec.compression
    there = spec.evaluate is not None and compression.calibration_rows > 0
    if not there and (compression.policy == "hybrid" or compression.floor is not None):
        what = "policy `hybrid` chooses layers" if compression.policy == "hybrid" else "`compression.floor` is judged"
        raise CalibrationMissing(f"{what} by calibration rows: give `evaluate.held_out`, and `compression.calibration_rows` above 0")


def calibration_of(session: Session, run: Run, spec: RunFile) -> Calibration | None:
    """The run's model as it is now, and its calibration rows; None where it has none."""
    if spec.evaluate is None or spec.evaluate.digest is None or not spec.compression.calibration_rows:
        return None
    return Calibration(
        task=spec.task.kind, num_labels=spec.task.num_labels, label_names=spec.task.label_names, max_length=spec.task.max_length,
        files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id)), held_out=held_out_ref(spec),
        rows=spec.compression.calibration_rows,
    )  # fmt: skip


def held_out_ref(spec: RunFile) -> HeldOutRef:
    assert spec.evaluate is not None
    assert spec.evaluate.digest is not None
    name = spec.evaluate.held_out.replace("\\", "/").rsplit("/", 1)[-1]
    return HeldOutRef(digest=spec.evaluate.digest, name=name, columns=spec.evaluate.columns, how=spec.evaluate.table_format())


def request_influence(session: Session, run: Run, spec: RunFile) -> bool:
    """Have the influence of layers measured, where the policy goes by it; whether it is needed before the run can start."""
    calibration = calibration_of(session, run, spec)
    if calibration is None or spec.compression.policy not in ("hybrid", "auto"):
        return False
    payload = InfluencePayload(**calibration.model_dump())
    jobs.enqueue(session, JobKind.INFLUENCE, run.id, payload.model_dump(mode="json"))
    return True


def influence_measured(session: Session, run: Run, result: InfluenceResult) -> None:
    for block in session.scalars(select(Block).where(Block.run_id == run.id)):
        block.influence = result.influence.get(block.name)


def known_fidelity(session: Session, run: Run, block: str) -> Mapping[str, float]:
    """The cosine that was measured last, by the key of the plan; a plan that could not be measured is the least faithful there is, so that
    nobody waits for it for ever.
    """
    rows = session.scalars(select(Fidelity).where(Fidelity.run_id == run.id, Fidelity.block == block).order_by(Fidelity.round))
    return {row.metrics["plan"]: UNMEASURABLE if row.metrics["cosine"] is None else row.metrics["cosine"] for row in rows}


def request_fidelity(session: Session, run: Run, spec: RunFile, assignment: Assignment, plan: Plan, manifest: Manifest) -> None:
    """Have an emulator compared with the real model, once for each round, block and plan."""
    if all(codec == "exact" for codec in plan.values()) or (calibration := calibration_of(session, run, spec)) is None:
        return
    key = plan_key(plan)
    if session.get(Fidelity, (run.id, assignment.round, assignment.block, digest_of(key.encode()))) is not None:
        return
    under_way = session.scalars(
        select(Job.payload).where(Job.subject == run.id, Job.kind == JobKind.FIDELITY, Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
    )
    if any((p["plan"], p["block"], p["round"]) == (key, assignment.block, assignment.round) for p in under_way):
        return
    payload = FidelityPayload(
        **calibration.model_dump(), plan=key, block=assignment.block, emulator=manifest.blocks, dropped=manifest.dropped,
        round=assignment.round, codecs=plan, batch_size=spec.train.batch_size,
    )  # fmt: skip
    # All of one round are waited for where there is a floor; nobody waits for those of a round that is over.
    jobs.skip(session, JobKind.FIDELITY, run.id, lambda waiting: waiting["round"] < assignment.round)
    jobs.enqueue(session, JobKind.FIDELITY, run.id, payload.model_dump(mode="json"))


def fidelity_measured(session: Session, job: Job, result: FidelityResult) -> None:
    _keep_fidelity(session, job, result.model_dump(exclude={"block"}))


def fidelity_failed(session: Session, job: Job) -> None:
    payload = FidelityPayload.model_validate(job.payload)
    failed = _failed(session, job, f"the fidelity of {payload.block} in round {payload.round}")
    nothing = {"cosine": None, "cosine_worst": None, "loss_real": None, "loss_emulator": None, "rows": 0, "seconds": 0.0}
    _keep_fidelity(session, job, {"plan": payload.plan, **nothing, "failed": failed})


def _keep_fidelity(session: Session, job: Job, metrics: dict[str, Any]) -> None:
    """Store it with the round; whoever waits for it may ask again."""
    payload = FidelityPayload.model_validate(job.payload)
    key = (job.subject, payload.round, payload.block, digest_of(payload.plan.encode()))
    if session.get(Fidelity, key) is None:
        session.add(
            Fidelity(run_id=key[0], round=key[1], block=key[2], plan=key[3], codecs=payload.codecs, metrics=metrics, created_at=utcnow())
        )
    shards.offer_pending(session, job.subject)


def _failed(session: Session, job: Job, what: str) -> dict[str, str]:
    """Say to people that something could not be measured; returns what is kept in its place."""
    code, message = job.error_code or "engine_failed", job.error or ""
    record(session, "error", code, f"{what} could not be measured: {message}; the run goes on", run_id=job.subject)
    return {"code": code, "message": message[:500]}


def request_loss(session: Session, run: Run, spec: RunFile, after_rounds: int) -> None:
    """Have the real model's loss on the calibration rows measured, as it is after a number of rounds."""
    calibration = calibration_of(session, run, spec)
    if calibration is None:
        return
    values = calibration.model_dump(exclude={"rows"})
    payload = EvaluatePayload(**values, after_rounds=after_rounds, rows=calibration.rows)
    jobs.skip(session, JobKind.LOSS, run.id)
    jobs.enqueue(session, JobKind.LOSS, run.id, payload.model_dump(mode="json"))


def loss_measured(session: Session, job: Job, result: EvaluateResult) -> None:
    before, after = _rounds_at(session, job)
    if before is not None:
        before.loss_after = result.loss
    if after is not None:
        after.loss_before = result.loss


def loss_failed(session: Session, job: Job) -> None:
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    failed = _failed(session, job, f"the loss on the calibration rows after {after_rounds} rounds")
    for round in _rounds_at(session, job):
        if round is not None:
            round.loss_failed = failed


def _rounds_at(session: Session, job: Job) -> tuple[Round | None, Round | None]:
    """The round after which a loss was to be measured, and the one before which."""
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    return session.get(Round, (job.subject, after_rounds - 1)), session.get(Round, (job.subject, after_rounds))


def request_score(session: Session, run: Run, spec: RunFile, after_rounds: int) -> None:
    """Have the model scored on all held-out rows, as it is after a number of rounds."""
    payload = EvaluatePayload(
        after_rounds=after_rounds, task=spec.task.kind, num_labels=spec.task.num_labels, label_names=spec.task.label_names,
        max_length=spec.task.max_length, files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id)),
        held_out=held_out_ref(spec),
    )  # fmt: skip
    # What the training is measured against is not skipped.
    for skipped in jobs.skip(session, JobKind.EVALUATE, run.id, lambda waiting: waiting["after_rounds"] > 0):
        _keep_score(session, skipped, NO_SCORE | {"failed": SKIPPED})
    jobs.enqueue(session, JobKind.EVALUATE, run.id, payload.model_dump(mode="json"))


def scored(session: Session, job: Job, result: EvaluateResult) -> None:
    _keep_score(session, job, result.model_dump())


def score_failed(session: Session, job: Job) -> None:
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    _keep_score(session, job, NO_SCORE | {"failed": _failed(session, job, f"the score after {after_rounds} rounds")})


def _keep_score(session: Session, job: Job, metrics: dict[str, Any]) -> None:
    after_rounds = EvaluatePayload.model_validate(job.payload).after_rounds
    if session.get(Evaluation, (job.subject, after_rounds)) is None:
        session.add(Evaluation(run_id=job.subject, after_rounds=after_rounds, metrics=metrics, created_at=utcnow()))
