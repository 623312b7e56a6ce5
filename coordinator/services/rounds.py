"""Rounds: open the next one, judge what came in, apply it, close."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db import queries
from coordinator.db.base import utcnow
from coordinator.db.models import Agent, Assignment, Block, Job, Round, Run
from coordinator.domain.assignment import ASSIGNMENT, AssignmentEvent, AssignmentState
from coordinator.domain.exposure import ExposureBudgetTooSmall
from coordinator.domain.job import AdmitPayload, AdmitResult, ApplyPayload, ApplyResult, Change, JobKind, Term
from coordinator.domain.round import ROUND, RoundEvent, RoundState, deadline_of, weight_of
from coordinator.domain.run import RUN, RunEvent, RunState
from coordinator.domain.run_file import RunFile
from coordinator.domain.schedule import Visit, rounds_per_cycle, visits
from coordinator.services import budget, calibration, emulators, jobs, keys, readiness, shards, signals
from coordinator.services.events import record
from shared.protocol import LASTING_REASONS, MENDABLE_REASONS, Manifest, ParameterGroup, ShardRef, Training, TrainSettings


def open_next(session: Session, run: Run, now: datetime) -> None:
    """Open the round that follows the closed ones, or finish the run when there is none; a paused run stays as it is."""
    number = queries.rounds_closed(session, run.id)
    if number >= run.rounds_total:
        run.state = RUN.after(run.state, RunEvent.FINISH)
        run.reason = None
        run.ended_at = now
        failed = queries.failed_measurements(session, run.id)
        text = f"; {failed} measurements failed, the events before say why" if failed else ""
        record(
            session,
            "warning" if failed else "info",
            "run_completed",
            f"run {run.name} completed after {number} rounds{text}",
            run_id=run.id,
        )
        return
    last = queries.last_round(session, run.id)
    if run.state != RunState.RUNNING or (last is not None and last.state != RoundState.CLOSED):
        return
    spec = RunFile.model_validate(run.spec)
    run.participants = [*run.participants, *readiness.newcomers(session, run, spec)]
    try:
        plans = _visits(session, run, spec, number)
    except ExposureBudgetTooSmall as error:
        _pause(session, run, error.message)
        return
    names = [plan.block for plan in plans]
    session.add(
        Round(run_id=run.id, number=number, cycle=plans[0].cycle, blocks=names, state=RoundState.OPEN, opened_at=now,
              loss_before=last.loss_after if last is not None else None)
    )  # fmt: skip
    for plan in plans:
        assignment = _assign(session, run, spec, plan, now, failures=0, excluded=[])
        unseen = spec.exposure.max_exact_blocks is None
        why = "nobody who takes part has data that fit" if unseen else "too many of its blocks were seen by others who stood in"
        pause_if_hopeless(session, run, assignment, why)


def _visits(session: Session, run: Run, spec: RunFile, number: int) -> list[Visit]:
    common = None if spec.exposure.max_exact_blocks is None else budget.common(spec, queries.blocks_of(session, run.id))
    return visits(spec, run.trained_blocks, run.participants, number, common)


def _assign(session: Session, run: Run, spec: RunFile, plan: Visit, now: datetime, failures: int, excluded: list[str]) -> Assignment:
    assignment = Assignment(
        id=keys.new_id("asg"), run_id=run.id, round=plan.round, block=plan.block, state=AssignmentState.PENDING,
        attempt=0, failures=failures, meant_for=plan.agent, excluded=excluded, waiting_since=now,
        manifest=_manifest(session, run), train=train_settings(spec, plan).model_dump(), applied=False,
    )  # fmt: skip
    if plan.agent is not None and not _can_come(session, run, spec, assignment, plan.agent):
        assignment.meant_for = None
    session.add(assignment)
    offer(session, assignment.meant_for)
    return assignment


def _manifest(session: Session, run: Run) -> dict[str, Any]:
    """All blocks as they are now, exact; whoever leases the assignment gets them in the codecs of its emulator."""
    return Manifest(files=run.files, blocks=queries.shard_refs(queries.blocks_of(session, run.id))).model_dump()


def _can_come(session: Session, run: Run, spec: RunFile, assignment: Assignment, agent_id: str) -> bool:
    if agent_id in assignment.excluded or not readiness.is_there(session, run.id, agent_id):
        return False
    return budget.may_take(session, run, spec, assignment, agent_id)


def offer(session: Session, meant_for: str | None) -> None:
    if meant_for is None:
        signals.wake_any(session)
    else:
        signals.wake_agents(session, [meant_for])


def train_settings(spec: RunFile, plan: Visit) -> TrainSettings:
    """What an agent is told about a visit: all that the run file says of training, and what the schedule makes of its learning rates."""
    along = [name for name in spec.schedule.always if name != plan.block]
    groups = [ParameterGroup(blocks=[plan.block], learning_rate=plan.learning_rate)]
    if along:
        groups.append(ParameterGroup(blocks=along, learning_rate=plan.always_learning_rate))
    return TrainSettings(
        **spec.train.model_dump(include=set(Training.model_fields)), task=spec.task.kind, num_labels=spec.task.num_labels,
        label_names=spec.task.label_names, max_length=spec.task.max_length, groups=groups, seed=plan.seed,
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
    apply_if_due(session, run, assignment.round, now)


def apply_if_due(session: Session, run: Run, number: int, now: datetime) -> None:
    """Have the accepted deltas of a round applied together: when all are in, or the deadline has passed and none is being judged.

    The run is locked. What is missing is taken back from the agents that train it; a late delta of theirs is fenced off.
    """
    round = session.get_one(Round, (run.id, number))
    if round.state != RoundState.OPEN:
        return
    spec = RunFile.model_validate(run.spec)
    waiting = [a for a in _members(session, round, lock=True) if not a.applied]
    accepted = [a for a in waiting if a.state == AssignmentState.ACCEPTED]
    missing = [a for a in waiting if a.state != AssignmentState.ACCEPTED]
    if not accepted or any(a.state == AssignmentState.SUBMITTED for a in missing):
        return
    if missing:
        deadline = deadline_of((a.judged_at for a in accepted), spec.schedule.wave_deadline_s)
        # A pause holds the deadline up too: nothing is taken from those who finish their work.
        if deadline is None or now < deadline or run.state != RunState.RUNNING:
            return
        late = ", ".join(_withdraw(session, a, now) for a in missing)
        text = f"round {number}: {len(accepted)} of {len(waiting)} deltas came in time and are applied; trained again: {late}"
        record(session, "warning", "wave_deadline", text, run_id=run.id)
    round.state = ROUND.after(round.state, RoundEvent.DEADLINE if missing else RoundEvent.ALL_ACCEPTED)
    shards.apply(session, run, number, accepted, _changes(session, run, spec, accepted))


def _members(session: Session, round: Round, lock: bool = False) -> list[Assignment]:
    """The assignments that count, one a block, in the order of the round's blocks: never in that of their arrival."""
    query = select(Assignment).where(
        Assignment.run_id == round.run_id, Assignment.round == round.number, Assignment.state != AssignmentState.REJECTED
    )
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    return sorted(session.scalars(query), key=lambda a: round.blocks.index(a.block))


def _withdraw(session: Session, assignment: Assignment, now: datetime) -> str:
    """Take a visit back from the agent that has it; whose it was, for people."""
    if assignment.state != AssignmentState.LEASED:
        return f"{assignment.block} (nobody had it)"
    name = queries.agent_names(session).get(assignment.agent_id or "", "?")
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.WITHDRAW)
    assignment.agent_id, assignment.lease_expires_at, assignment.progress = None, None, None
    assignment.waiting_since, assignment.reason = now, "wave_deadline"
    return f"{assignment.block} ({name})"


def _changes(session: Session, run: Run, spec: RunFile, accepted: Sequence[Assignment]) -> list[Change]:
    """block ← block + damping · mean of the deltas of those who trained it: one for a visited block, all for those trained along."""
    changes = []
    blocks = queries.blocks_of(session, run.id)
    codecs = emulators.codecs_after(spec, blocks, {base.block for a in accepted for base in trained_refs(a)})
    for ref in queries.shard_refs(blocks):
        trainers = [(a, base) for a in accepted for base in trained_refs(a) if base.block == ref.block]
        assert all(base.version == ref.version for _, base in trainers), "every delta is from the present version"
        weight = weight_of(spec.schedule.damping, max(1, len(trainers)))
        if terms := [Term(digest=a.delta_digest, weight=weight) for a, _ in trainers if a.delta_digest]:
            changes.append(Change(block=ref, terms=terms, codecs=codecs[ref.block]))
    return changes


def apply_overdue(session: Session, now: datetime) -> None:
    """Look after the deadlines of all rounds that are open."""
    open_rounds = (
        select(Round.run_id, Round.number, Run.spec)
        .join(Run, Run.id == Round.run_id)
        .where(Round.state == RoundState.OPEN, Run.state == RunState.RUNNING)
        .order_by(Round.run_id)
    )
    for run_id, number, spec in session.execute(open_rounds).all():
        deadline_s = spec["schedule"].get("wave_deadline_s")
        if deadline_s is None:
            continue
        waiting = (Assignment.run_id == run_id) & (Assignment.round == number) & ~Assignment.applied
        accepted_at = session.scalars(select(Assignment.judged_at).where(waiting, Assignment.state == AssignmentState.ACCEPTED)).all()
        deadline = deadline_of(accepted_at, deadline_s)
        if deadline is not None and now >= deadline:
            apply_if_due(session, session.get_one(Run, run_id, with_for_update=True), number, now)


def _reject(session: Session, run: Run, assignment: Assignment, reason: str, now: datetime) -> None:
    assignment.state = ASSIGNMENT.after(assignment.state, AssignmentEvent.REJECT)
    assignment.reason = reason
    name = queries.agent_names(session).get(assignment.agent_id or "", "?")
    record(
        session, "error", "delta_rejected", f"delta of {name} for {assignment.block}: {reason}", run_id=run.id, agent_id=assignment.agent_id
    )
    spec = RunFile.model_validate(run.spec)
    plan = next(v for v in _visits(session, run, spec, assignment.round) if v.block == assignment.block)
    # The same agent would send the same again: seeds do not come from the attempt. Another one is asked.
    excluded = [*assignment.excluded, assignment.agent_id] if assignment.agent_id else assignment.excluded
    again = _assign(session, run, spec, plan, now, failures=assignment.failures + 1, excluded=excluded)
    pause_if_hopeless(session, run, again, f"block {assignment.block} was rejected: {reason}")
    apply_if_due(session, run, assignment.round, now)  # the others may have waited for this judgement alone


def failed_attempt(session: Session, run: Run, assignment: Assignment, reason: str, message: str, now: datetime) -> None:
    """An attempt came to nothing: it waits again, and after too many failures the run is paused, with the reason."""
    agent_id = assignment.agent_id
    assignment.agent_id, assignment.lease_expires_at, assignment.progress = None, None, None
    assignment.waiting_since, assignment.reason = now, reason
    if reason not in ("stopping", "not_consented"):
        assignment.failures += 1
    if reason in LASTING_REASONS and agent_id is not None:
        assignment.excluded = [*assignment.excluded, agent_id]
        if reason in MENDABLE_REASONS:
            readiness.refused(session, run.id, agent_id, assignment.id, reason, now)
        if assignment.meant_for == agent_id:
            assignment.meant_for = None
    if agent_id is not None and reason != "stopping":
        agent = session.get_one(Agent, agent_id)
        agent.last_error, agent.last_error_at = f"{reason}: {message}", now
        text = f"{agent.name} on {assignment.block}: {reason}" + (f": {message}" if message else "")
        record(session, "warning", reason, text, run_id=run.id, agent_id=agent_id)
    offer(session, assignment.meant_for)
    pause_if_hopeless(session, run, assignment, f"block {assignment.block}: {reason}: {message}")


def pause_if_hopeless(session: Session, run: Run, assignment: Assignment, why: str) -> None:
    """Stop to try when nobody is left, or too many attempts have failed; the operator mends it and resumes."""
    if run.state != RunState.RUNNING:
        return
    spec = RunFile.model_validate(run.spec)
    if readiness.able(session, run, spec) <= set(assignment.excluded):
        _pause(session, run, f"no agent is left that could try: {why}")
        run.waits_for_agents = True
    elif assignment.failures >= spec.schedule.max_attempts:
        _pause(session, run, f"{assignment.failures} attempts failed: {why}")
    elif not budget.somebody_may(session, run, spec, assignment):
        limit = spec.exposure.max_exact_blocks
        _pause(session, run, f"no agent is left that may see block {assignment.block} within max_exact_blocks of {limit}: {why}")


def exclude(session: Session, run: Run, assignment: Assignment, agent_id: str, why: str) -> None:
    """No emulator of a pending assignment fits an agent: others are asked."""
    name = queries.agent_names(session).get(agent_id, "?")
    assignment.excluded = [*assignment.excluded, agent_id]
    readiness.refused(session, run.id, agent_id, assignment.id, None, utcnow())
    if assignment.meant_for == agent_id:
        assignment.meant_for = None
    record(session, "warning", "does_not_fit", f"{name} on {assignment.block}: {why}", run_id=run.id, agent_id=agent_id)
    offer(session, assignment.meant_for)
    pause_if_hopeless(session, run, assignment, f"block {assignment.block}: {why}")


def pause(session: Session, run: Run, reason: str) -> None:
    """Stop a running run until the operator has mended something."""
    if run.state == RunState.RUNNING:
        _pause(session, run, reason)


def _pause(session: Session, run: Run, reason: str) -> None:
    run.state = RUN.after(run.state, RunEvent.PAUSE)
    run.reason, run.waits_for_agents = reason[:2000], False
    record(session, "error", "run_paused", f"run {run.name} paused: {run.reason}; mend it, then resume", run_id=run.id)


def applied(session: Session, job: Job, result: ApplyResult) -> None:
    """The new versions are stored: make them the present ones, close the round and open the next, all in one transaction.

    A round of which members came too late for its deadline opens again for them instead.
    """
    now = utcnow()
    payload = ApplyPayload.model_validate(job.payload)
    run = session.get_one(Run, job.subject, with_for_update=True)
    round = session.get_one(Round, (run.id, payload.round))
    if round.state != RoundState.APPLYING or run.state in (RunState.CANCELLED, RunState.FAILED):
        return  # applied already, or nobody wants it any more
    before = {change.block.block: change.block for change in payload.changes}
    shards.record(session, result.shards, result.patches)
    for ref in result.blocks:
        block = session.get_one(Block, (run.id, ref.block))
        assert (block.version, block.digest) == (before[ref.block].version, before[ref.block].digest)
        block.version, block.digest, block.size = ref.version, ref.digest, ref.size
    session.flush()
    members = _members(session, round, lock=True)
    for member in members:
        member.applied = member.applied or member.id in payload.assignments
    if late := [member for member in members if not member.applied]:
        round.state = ROUND.after(round.state, RoundEvent.PARTLY_APPLIED)
        for member in late:
            member.manifest = _manifest(session, run)
            offer(session, member.meant_for)
        return
    round.state = ROUND.after(round.state, RoundEvent.APPLIED)
    round.closed_at = now
    session.flush()
    evaluate_if_due(session, run, round.number + 1)
    open_next(session, run, now)


def evaluate_if_due(session: Session, run: Run, after_rounds: int) -> None:
    """Have the model scored on the held-out rows: at the start (but for `end`), as often as the run file says, and at the end."""
    spec = RunFile.model_validate(run.spec)
    calibration.request_loss(session, run, spec, after_rounds)
    if spec.evaluate is None or spec.evaluate.digest is None:
        return
    match spec.evaluate.every:
        case "round":
            every = 1
        case "cycle":
            every = rounds_per_cycle(spec, run.trained_blocks)
        case "end":
            every = run.rounds_total
        case int(number):
            every = number
    if after_rounds != run.rounds_total and (after_rounds % every or spec.evaluate.every == "end"):
        return
    calibration.request_score(session, run, spec, after_rounds)
