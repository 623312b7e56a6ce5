"""Builds what operators see: runs, rounds, blocks, agents, leases, bytes, errors."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Evaluation, Event, Fidelity, Job, Model, Round, Run
from fedcybgd.coordinator.domain import fresh_parts
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.run import RUN
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.read.working import running_jobs
from fedcybgd.coordinator.services.records import ledgers
from fedcybgd.shared.contract.views import (
    AgentView,
    AssignmentView,
    BlockView,
    BytesView,
    EvaluationView,
    EventView,
    FidelityView,
    LeaseView,
    MemberView,
    RoundView,
    RunSummary,
    RunView,
    StatusView,
    TrafficView,
)

ROUNDS_SHOWN = 12


def run_summaries(session: Session, limit: int = 1000) -> list[RunSummary]:
    return [_summary(session, run) for run in session.scalars(select(Run).order_by(Run.created_at.desc()).limit(limit))]


def _summary(session: Session, run: Run) -> RunSummary:
    return RunSummary(
        id=run.id, name=run.name, model=session.get_one(Model, run.model_id).name, state=run.state, reason=run.reason, prepared=run.prepared,
        rounds_done=queries.rounds_closed(session, run.id), rounds_total=run.rounds_total,
        created_at=run.created_at, started_at=run.started_at, ended_at=run.ended_at,
    )  # fmt: skip


def run_status(session: Session, name: str, now: datetime) -> RunView:
    return run_view(session, queries.run_by_name(session, name), now)


def run_view(session: Session, run: Run, now: datetime) -> RunView:
    summary = _summary(session, run)
    names = queries.agent_names(session)
    trained = {*run.trained_blocks, *run.spec.schedule.always} if run.prepared else set()
    rounds = queries.last_rounds(session, run.id, ROUNDS_SHOWN)
    current = queries.assignments_of(session, run.id, rounds[0].number) if rounds else []
    return RunView(
        **summary.model_dump(), spec=run.spec, participants=[names.get(agent, agent) for agent in run.participants],
        readiness={} if RUN.is_final(run.state) else _standings(session, run),
        notes=_notes(session, run), files=run.files,
        blocks=[
            BlockView(name=b.name, kind=b.kind, version=b.version, digest=b.digest, size=b.size, num_parameters=b.num_parameters,
                      trained=b.name in trained)
            for b in queries.blocks_of(session, run.id)
        ],
        rounds=_rounds(session, run, rounds),
        current=[_assignment(a, names) for a in sorted(current, key=lambda a: a.seat)],
        evaluations=[_evaluation(e)
                     for e in queries.evaluations_of(session, run.id)],
        bytes=_bytes(queries.traffic_of(session, run.id)),
        pending_jobs=queries.unfinished_jobs(session, run.id), failed_measurements=queries.failed_measurements(session, run.id),
        seconds_left=_seconds_left(run, summary.rounds_done, now),
        events=_events(queries.recent_events(session, 10, run_id=run.id)),
    )  # fmt: skip


def _standings(session: Session, run: Run) -> dict[str, int]:
    return Counter(str(member.standing) for member in readiness.members(session, run, run.spec))


def run_readiness(session: Session, name: str) -> list[MemberView]:
    """The agents that a run is open to: who is there, and whose data fit."""
    run = queries.run_by_name(session, name)
    return [
        MemberView(agent=m.name, standing=m.standing, takes_part=m.takes_part, reason=m.reason, rows=m.rows, exact=m.exact,
                   last_seen_at=m.last_seen_at)
        for m in readiness.members(session, run, run.spec)
    ]  # fmt: skip


def run_assignments(session: Session, name: str) -> list[AssignmentView]:
    names = queries.agent_names(session)
    return [_assignment(a, names) for a in queries.assignments_of(session, queries.run_by_name(session, name).id)]


def overview(session: Session, now: datetime, waiting_claims: int) -> StatusView:
    names = queries.agent_names(session)
    leased = session.execute(
        select(Assignment, Run.name).join(Run, Run.id == Assignment.run_id).where(Assignment.state == AssignmentState.LEASED)
    ).all()
    jobs = session.execute(select(Job.state, func.count()).group_by(Job.state))
    return StatusView(
        version=version("fedcybgd"), now=now, waiting_claims=waiting_claims,
        runs=run_summaries(session, 50),
        agents=[AgentView.model_validate(a, from_attributes=True) for a in queries.agents(session, 1000)],
        leases=[
            LeaseView(run=name, round=a.round, block=a.called, agent=names.get(a.agent_id or "", "?"), attempt=a.attempt,
                      expires_at=a.lease_expires_at, progress=a.progress)
            for a, name in leased
        ],
        bytes=_bytes(ledgers.totals(session)),
        jobs={str(row[0]): int(row[1]) for row in jobs}, running_jobs=running_jobs(session, now),
        last_errors=_events(queries.recent_events(session, 20, ("error", "warning"))),
    )  # fmt: skip


def _notes(session: Session, run: Run) -> list[str]:
    model = session.get_one(Model, run.model_id)
    blocks = [(b.name, {t.name: t.shape for t in b.tensors}) for b in queries.blocks_of(session, run.id)]
    available = {t.name: t.shape for block in model.blocks for t in block.tensors}
    return fresh_parts.notes(blocks, available, model.config, run.spec.task.label_names)


def _assignment(assignment: Assignment, names: dict[str, str]) -> AssignmentView:
    return AssignmentView(
        id=assignment.id, round=assignment.round, seat=assignment.seat, block=assignment.block, blocks=assignment.blocks,
        state=assignment.state, reason=assignment.reason,
        attempt=assignment.attempt, agent=names.get(assignment.agent_id or ""), meant_for=names.get(assignment.meant_for or ""),
        lease_expires_at=assignment.lease_expires_at, leased_at=assignment.leased_at, submitted_at=assignment.submitted_at,
        judged_at=assignment.judged_at, progress=assignment.progress, metrics=assignment.metrics, delta_digest=assignment.delta_digest,
        applied=assignment.applied,
    )  # fmt: skip


def _rounds(session: Session, run: Run, rounds: Sequence[Round]) -> list[RoundView]:
    if not rounds:
        return []
    applied = queries.applied_in(session, run.id, rounds[-1].number)
    fidelity = queries.fidelity_since(session, run.id, rounds[-1].number)
    return [
        RoundView(number=r.number, cycle=r.cycle, blocks=r.blocks, state=r.state, applied=applied.get(r.number, 0),
                  loss_before=r.loss_before, loss_after=r.loss_after, loss_failed=r.loss_failed,
                  fidelity=[_fidelity(f) for f in fidelity if f.round == r.number],
                  opened_at=r.opened_at, closed_at=r.closed_at)
        for r in rounds
    ]  # fmt: skip


def _evaluation(row: Evaluation) -> EvaluationView:
    score = row.metrics
    return EvaluationView(
        after_rounds=row.after_rounds, loss=score.loss, accuracy=score.accuracy, rows=score.rows, seconds=score.seconds, failed=score.failed,
        created_at=row.created_at,
    )  # fmt: skip


def _fidelity(row: Fidelity) -> FidelityView:
    found = row.metrics
    return FidelityView(
        block=row.block, plan=found.plan, cosine=found.cosine, loss_real=found.loss_real, loss_emulator=found.loss_emulator,
        failed=found.failed,
    )  # fmt: skip


def run_rounds(session: Session, name: str) -> list[RoundView]:
    """All rounds of a run, the newest first."""
    run = queries.run_by_name(session, name)
    return _rounds(session, run, queries.last_rounds(session, run.id, None))


def run_traffic(session: Session, name: str) -> list[TrafficView]:
    names = queries.agent_names(session)
    rows = queries.traffic_rows(session, queries.run_by_name(session, name).id)
    return [TrafficView(round=t.round, agent=names.get(t.agent_id, "?"), kind=t.kind, bytes=t.bytes) for t in rows]


def _bytes(by_kind: dict[str, int]) -> BytesView:
    return BytesView(down=sum(by_kind.get(kind, 0) for kind in ("shard", "patch", "file")), up=by_kind.get("delta", 0))


def _events(events: Sequence[Event]) -> list[EventView]:
    return [EventView(at=e.at, level=e.level, code=e.code, message=e.message) for e in events]


def _seconds_left(run: Run, done: int, now: datetime) -> float | None:
    if run.started_at is None or not done or RUN.is_final(run.state):
        return None
    return (now - run.started_at).total_seconds() / done * (run.rounds_total - done)
