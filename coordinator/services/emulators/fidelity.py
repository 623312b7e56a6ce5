"""How faithful emulators are, measured on calibration rows: once for each round, block and plan."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Fidelity, Run
from fedcybgd.coordinator.domain.compression import UNMEASURABLE, Plan, plan_key
from fedcybgd.coordinator.domain.jobs.measurements import FidelityPayload, FidelityResult
from fedcybgd.coordinator.domain.jobs.registry import FIDELITY, Done, Failed
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.coordinator.services.measure import calibration
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import Manifest
from fedcybgd.shared.contract.measured import FidelityNumbers


def known_fidelity(session: Session, run: Run, block: str) -> Mapping[str, float]:
    """The cosine that was measured last, by the key of the plan; a plan that could not be measured is the least faithful there is, so that
    nobody waits for it for ever.
    """
    of_block = (Fidelity.run_id == run.id) & (Fidelity.block == block)
    last = select(Fidelity.plan, func.max(Fidelity.round).label("round")).where(of_block).group_by(Fidelity.plan).subquery()
    newest = select(Fidelity.metrics).join(last, (Fidelity.plan == last.c.plan) & (Fidelity.round == last.c.round)).where(of_block)
    return {found.plan: UNMEASURABLE if found.cosine is None else found.cosine for found in session.scalars(newest)}


def is_measured(session: Session, run: Run, assignment: Assignment, plan: Plan, manifest: Manifest, now: datetime) -> bool:
    """Whether an emulator may be given out: where there is a floor, once its fidelity is known. What is not known is requested."""
    request_fidelity(session, run, run.spec, assignment, plan, manifest, now)
    if run.spec.compression.floor is None or (key := plan_key(plan)) == EXACT:
        return True
    return key in known_fidelity(session, run, assignment.block)


def request_fidelity(
    session: Session, run: Run, spec: RunFile, assignment: Assignment, plan: Plan, manifest: Manifest, now: datetime
) -> None:
    """Have an emulator compared with the real model, once for each round, block and plan."""
    if all(codec == EXACT for codec in plan.values()) or not calibration.has_calibration(spec):
        return
    key = plan_key(plan)
    if session.get(Fidelity, (run.id, assignment.round, assignment.block, digest_of(key.encode()))) is not None:
        return
    under_way = jobs.facts_of_unfinished(session, FIDELITY, run.id, "plan", "block", "round")
    if (key, assignment.block, str(assignment.round)) in under_way:
        return
    if (measured_on := calibration.calibration_of(session, run, spec)) is None:
        return
    payload = FidelityPayload(
        **dict(measured_on), plan=key, block=assignment.block, emulator=manifest.blocks, dropped=manifest.dropped,
        round=assignment.round, codecs=plan, batch_size=spec.train.batch_size,
    )  # fmt: skip
    # All of one round are waited for where there is a floor; nobody waits for those of a round that is over.
    if any(int(number) < assignment.round for _, _, number in under_way):
        jobs.skip(session, FIDELITY, run.id, now, lambda waiting: waiting.round < assignment.round)
    jobs.enqueue(session, FIDELITY, run.id, payload, now)


def fidelity_measured(session: Session, done: Done[FidelityPayload, FidelityResult]) -> None:
    result = done.result
    figures = FidelityNumbers(
        plan=result.plan, cosine=result.cosine, cosine_worst=result.cosine_worst, loss_real=result.loss_real,
        loss_emulator=result.loss_emulator, rows=result.rows, seconds=result.seconds,
    )  # fmt: skip
    _keep_fidelity(session, done.subject, done.payload, figures, done.now)


def fidelity_failed(session: Session, failed: Failed[FidelityPayload]) -> None:
    payload = failed.payload
    why = calibration.failed(session, failed, f"the fidelity of {payload.block} in round {payload.round}")
    nothing = FidelityNumbers(
        plan=payload.plan, cosine=None, cosine_worst=None, loss_real=None, loss_emulator=None, rows=0, seconds=0.0, failed=why
    )
    _keep_fidelity(session, failed.subject, payload, nothing, failed.now)


def _keep_fidelity(session: Session, run_id: str, payload: FidelityPayload, metrics: FidelityNumbers, now: datetime) -> None:
    """Store it with the round; whoever waits for it may ask again."""
    key = (run_id, payload.round, payload.block, digest_of(payload.plan.encode()))
    if session.get(Fidelity, key) is None:
        session.add(
            Fidelity(run_id=key[0], round=key[1], block=key[2], plan=key[3], codecs=payload.codecs, metrics=metrics, created_at=now)
        )
    shards.offer_pending(session, run_id)
