"""Rounds: open the next one, judge what came in, apply it, close."""

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db import queries
from coordinator.db.base import utcnow
from coordinator.db.models import Agent, Assignment, Block, Job, Round, Run
from coordinator.domain.assignment import ASSIGNMENT, AssignmentEvent, AssignmentState
from coordinator.domain.job import AdmitPayload, AdmitResult, ApplyPayload, ApplyResult, EvaluatePayload, HeldOutRef, JobKind
from coordinator.domain.round import ROUND, RoundEvent, RoundState
from coordinator.domain.run import RUN, RunEvent, RunState
from coordinator.domain.run_file import RunFile
from coordinator.domain.schedule import Visit, visit
from coordinator.services import jobs, keys, signals
from coordinator.services.events import record
from shared.protocol import LASTING_REASONS, Manifest, ParameterGroup, ShardRef, TrainSettings


def open_next(session: Session, run: Run, now: datetime) -> None:
    """Open the round that follows the closed ones, or finish the run when there is none; a paused run stays as it is."""
    number = queries.rounds_closed(session, run.id)
    if number >= run.rounds_total:
        run.state = RUN.after(run.state, RunEvent.FINISH)
        run.reason = None
        run.ended_at = now
        record(session, "info", "run_completed", f"run {run.name} completed after {number} rounds", run_id=run.id)
        return
    last = queries.last_round(session, run.id)
    if run.state != RunState.RUNNING or (last is not None and last.state != RoundState.CLOSED):
        return
    spec = RunFile.model_validate(run.spec)
    plan = visit(spec, run.trained_blocks, run.participants, number)
    session.add(Round(run_id=run.id, number=number, cycle=plan.cycle, block=plan.block, state=RoundState.OPEN, opened_at=now))
    _assign(session, run, spec, plan, now, failures=0, excluded=[])


def _assign(session: Session, run: Run, spec: RunFile, plan: Visit, now: datetime, failures: int, excluded: list[str]) -> None:
    blocks = queries.shard_refs(queries.blocks_of(session, run.id))
    meant_for = plan.agent
    if meant_for is not None and (meant_for in excluded or session.get_one(Agent, meant_for).state == "revoked"):
        meant_for = None
    session.add(
        Assignment(
            id=keys.new_id("asg"), run_id=run.id, round=plan.round, block=plan.block, state=AssignmentState.PENDING,
            attempt=0, failures=failures, meant_for=meant_for, excluded=excluded, waiting_since=now,
            manifest=Manifest(files=run.files, blocks=blocks).model_dump(),
            train=train_settings(spec, plan).model_dump(),
        )
    )  # fmt: skip
    offer(session, meant_for)


def offer(session: Session, meant_for: str | None) -> None:
    if meant_for is None:
        signals.wake_any(session)
    else:
        signals.wake_agents(session, [meant_for])


def train_settings(spec: RunFile, plan: Visit) -> TrainSettings:
    """What an agent is told about a visit."""
    along = [name for name in spec.schedule.always if name != plan.block]
    groups = [ParameterGroup(blocks=[plan.block], learning_rate=plan.learning_rate)]
    if along:
        groups.append(ParameterGroup(blocks=along, learning_rate=plan.always_learning_rate))
    train = spec.train
    return TrainSettings(
        task=spec.task.kind, num_labels=spec.task.num_labels, label_names=spec.task.label_names, groups=groups,
        steps=train.steps, epochs=train.epochs or 1.0, batch_size=train.batch_size, max_length=spec.task.max_length,
        warmup_steps=train.warmup_steps, weight_decay=train.weight_decay, max_grad_norm=train.max_grad_norm,
        precision=train.precision, seed=plan.seed,
    )  # fmt: skip


def trained_refs(assignment: Assignment) -> list[ShardRef]:
    """The blocks that an assignment trains, as they were sent."""
    settings = TrainSettings.model_validate(assignment.train)
    names = {name for group in settings.groups for name in group.blocks}
    return [ref for ref in Manifest.model_validate(assignment.manifest).blocks if ref.block in names]


def judge(session: Session, run: Run, assignment: Assignment) -> None:
    """A delta has come: have it measured and judged."""
    assert assignment.delta_digest is not None
    spec = RunFile.model_validate(run.spec)
    payload = AdmitPayload(
        assignment_id=assignment.id, delta=assignment.delta_digest, blocks=trained_refs(assignment),
        always=spec.schedule.always, rules=spec.admission,
    )  # fmt: skip
    jobs.enqueue(session, JobKind.ADMIT, run.id, payload.model_dump(mode="json"))


def judged(session: Session, job: Job, result: AdmitResult) -> None:
    """Accept or reject a delta; when all of the round are accepted, have them applied."""
    now = utcnow()
    payload = AdmitPayload.model_validate(job.payload)
    run = session.get_one(Run, job.subject, with_for_update=True)
    assignment = session.get_one(Assignment, payload.assignment_id, with_for_update=True)
    if assignment.state != AssignmentState.SUBMITTED:
        return  # judged already
    assignment.judged_at = now
    if RUN.is_final(run.state):
        assignment.state, assignment.reason = ASSIGNMENT.after(assignment.state, AssignmentEvent.REJECT), f"run_{run.state}"
        return
    if result.rejected_because is not None:
        _reject(session, run, assignment, result.rejected_because, now)
        return
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.ACCEPT)
    round = session.get_one(Round, (run.id, assignment.round))
    members = [a for a in queries.assignments_of(session, run.id, round.number) if a.state != AssignmentState.REJECTED]
    if all(a.state == AssignmentState.ACCEPTED for a in members):
        round.state = ROUND.after(round.state, RoundEvent.ALL_ACCEPTED)
        apply = ApplyPayload(
            round=round.number, blocks=trained_refs(assignment),
            deltas=[a.delta_digest for a in members if a.delta_digest], weights=[1.0 / len(members)] * len(members),
        )  # fmt: skip
        jobs.enqueue(session, JobKind.APPLY, run.id, apply.model_dump())


def _reject(session: Session, run: Run, assignment: Assignment, reason: str, now: datetime) -> None:
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.REJECT)
    assignment.reason = reason
    name = queries.agent_names(session).get(assignment.agent_id or "", "?")
    record(
        session, "error", "delta_rejected", f"delta of {name} for {assignment.block}: {reason}", run_id=run.id, agent_id=assignment.agent_id
    )
    spec = RunFile.model_validate(run.spec)
    plan = visit(spec, run.trained_blocks, run.participants, assignment.round)
    # The same agent would send the same again: seeds do not come from the attempt. Another one is asked.
    excluded = [*assignment.excluded, assignment.agent_id] if assignment.agent_id else assignment.excluded
    _assign(session, run, spec, plan, now, failures=assignment.failures + 1, excluded=excluded)
    pause_if_hopeless(session, run, assignment.failures + 1, excluded, f"block {assignment.block} was rejected: {reason}")


def failed_attempt(session: Session, run: Run, assignment: Assignment, reason: str, message: str, now: datetime) -> None:
    """An attempt came to nothing: it waits again, and after too many failures the run is paused, with the reason."""
    agent_id = assignment.agent_id
    assignment.agent_id, assignment.lease_expires_at, assignment.progress = None, None, None
    assignment.waiting_since, assignment.reason = now, reason
    if reason != "stopping":
        assignment.failures += 1
    if reason in LASTING_REASONS and agent_id is not None:
        assignment.excluded = [*assignment.excluded, agent_id]
        if assignment.meant_for == agent_id:
            assignment.meant_for = None
    if agent_id is not None and reason != "stopping":
        agent = session.get_one(Agent, agent_id)
        agent.last_error, agent.last_error_at = f"{reason}: {message}", now
        text = f"{agent.name} on {assignment.block}: {reason}" + (f": {message}" if message else "")
        record(session, "warning", reason, text, run_id=run.id, agent_id=agent_id)
    offer(session, assignment.meant_for)
    pause_if_hopeless(session, run, assignment.failures, assignment.excluded, f"block {assignment.block}: {reason}: {message}")


def pause_if_hopeless(session: Session, run: Run, failures: int, excluded: list[str], why: str) -> None:
    """Stop to try when nobody is left, or too many attempts have failed; the operator mends it and resumes."""
    limit = RunFile.model_validate(run.spec).schedule.max_attempts
    nobody_left = bool(excluded) and set(run.participants) <= set(excluded)
    if run.state == RunState.RUNNING and (failures >= limit or nobody_left):
        run.state = RUN.after(run.state, RunEvent.PAUSE)
        run.reason = f"{'no agent is left that could try' if nobody_left else f'{failures} attempts failed'}: {why}"[:2000]
        record(session, "error", "run_paused", f"run {run.name} paused: {run.reason}; mend it, then resume", run_id=run.id)


def applied(session: Session, job: Job, result: ApplyResult) -> None:
    """The new versions are stored: make them the present ones, close the round and open the next, all in one transaction."""
    now = utcnow()
    payload = ApplyPayload.model_validate(job.payload)
    run = session.get_one(Run, job.subject, with_for_update=True)
    round = session.get_one(Round, (run.id, payload.round))
    if round.state != RoundState.APPLYING or run.state in (RunState.CANCELLED, RunState.FAILED):
        return  # applied already, or nobody wants it any more
    before = {ref.block: ref for ref in payload.blocks}
    for ref in result.blocks:
        block = session.get_one(Block, (run.id, ref.block))
        assert (block.version, block.digest) == (before[ref.block].version, before[ref.block].digest)
        block.version, block.digest, block.size = ref.version, ref.digest, ref.size
    round.state = ROUND.after(round.state, RoundEvent.APPLIED)
    round.closed_at = now
    session.flush()
    evaluate_if_due(session, run, round.number + 1)
    open_next(session, run, now)


def evaluate_if_due(session: Session, run: Run, after_rounds: int) -> None:
    """Have the model scored on the held-out rows: at the start (but for `end`), as often as the run file says, and at the end."""
    spec = RunFile.model_validate(run.spec)
    if spec.evaluate is None or spec.evaluate.digest is None:
        return
    match spec.evaluate.every:
        case "round":
            every = 1
        case "cycle":
            every = len(run.trained_blocks)
        case "end":
            every = run.rounds_total
        case int(number):
            every = number
    if after_rounds != run.rounds_total and (after_rounds % every or spec.evaluate.every == "end"):
        return
    payload = EvaluatePayload(
        after_rounds=after_rounds, task=spec.task.kind, num_labels=spec.task.num_labels, label_names=spec.task.label_names,
        max_length=spec.task.max_length, files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id)),
        held_out=HeldOutRef(digest=spec.evaluate.digest, name=_file_name(spec.evaluate.held_out), columns=spec.evaluate.columns),
    )  # fmt: skip
    jobs.enqueue(session, JobKind.EVALUATE, run.id, payload.model_dump())


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]
