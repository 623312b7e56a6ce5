"""Step 7: has the accepted deltas of a round added to their blocks, together."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import NOT_COUNTED, AssignmentEvent, AssignmentState, TakenBack
from fedcybgd.coordinator.domain.jobs.payloads import AdaptersBase, ApplyPayload, Change
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.methods.terms import VisitDelta, terms_of
from fedcybgd.coordinator.domain.round import RoundState, deadline_of
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.emulators import choose, shards
from fedcybgd.coordinator.services.path import ahead, delivered, trained
from fedcybgd.coordinator.services.records import versions
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import assignments, rounds
from fedcybgd.shared.contract.adapters import ADAPTERS, factors_of
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.sizes import counted


def apply_if_due(session: Session, run: Run, number: int, now: datetime) -> None:
    """Have the accepted deltas of a round applied together: when all are in, or the deadline has passed and none is being judged.

    The run is locked. What is missing is taken back from the agents that train it; a late delta of theirs is fenced off.
    """
    round = session.get_one(Round, (run.id, number))
    if round.state != RoundState.OPEN:
        return
    spec = run.spec
    waiting = [a for a in members(session, round, lock=True) if not a.applied]
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
        came = f"{len(accepted)} of {counted(len(waiting), 'delta')} came in time and {'is' if len(accepted) == 1 else 'are'} applied"
        text = f"round {number}: {came}; trained again: {late}"
        record(session, now, "warning", "wave_deadline", text, run_id=run.id)
    rounds.apply(round, complete=not missing)
    shards.apply(session, run, round, accepted, _changes(session, run, spec, round, accepted), now)


def being_applied(session: Session, run: Run, payload: ApplyPayload) -> Round | None:
    """The round that these deltas are being added for. The run is locked, and so are the members of the round from here on.

    None where nobody waits for them any more: they were applied already, the round was undone and began anew, or the run has ended.
    """
    round = session.get(Round, (run.id, payload.round))
    if round is None or round.state != RoundState.APPLYING or run.state in (RunState.CANCELLED, RunState.FAILED):
        return None
    mine = {member.id for member in members(session, round, lock=True)}
    return round if set(payload.assignments) <= mine else None


def members(session: Session, round: Round, lock: bool = False) -> list[Assignment]:
    """The assignments that count, one a seat, in the order of seats: never in that of their arrival."""
    query = select(Assignment).where(
        Assignment.run_id == round.run_id, Assignment.round == round.number, Assignment.state.not_in(NOT_COUNTED)
    )
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    return sorted(session.scalars(query), key=lambda a: a.seat)


def _withdraw(session: Session, assignment: Assignment, now: datetime) -> str:
    """Take a visit back from the agent that has it; whose it was, for people."""
    if assignment.state != AssignmentState.LEASED:
        return f"{assignment.called} (nobody had it)"
    name = queries.agent_name(session, assignment.agent_id)
    assignments.take_back(assignment, AssignmentEvent.WITHDRAW, TakenBack.LATE, now)
    return f"{assignment.called} ({name})"


def _changes(session: Session, run: Run, spec: RunFile, round: Round, accepted: Sequence[Assignment]) -> list[Change]:
    """For each block that was trained: the deltas of those who trained it, weighted by the method."""
    blocks = queries.blocks_of(session, run.id)
    trainers: dict[str, list[tuple[Assignment, ShardRef, float | None]]] = {}
    for assignment in accepted:
        for base, scale in trained.changed_refs(session, assignment):
            trainers.setdefault(base.block, []).append((assignment, base, scale))
    refs, put_together = {ref.block: ref for ref in queries.shard_refs(blocks)}, {}
    for name, each in trainers.items():
        assert all(base.version == refs[name].version for _, base, _ in each), "every delta is from the present version"
        deltas = [VisitDelta(a.delta_digest or "", a.id, delivered.of(round, a), scale) for a, _, scale in each]
        put_together[name] = terms_of(spec.in_cycle(round.cycle), name, deltas, len(round.seats))
    folded = _folded(session, run, spec, [term.weight for term in put_together[ADAPTERS][0]] if ADAPTERS in put_together else [])
    codecs = choose.codecs_after(spec, blocks, {*trainers, *folded}, ahead.trained(session, run, spec, round.number + 1))
    outer = method_of(spec).outer(spec)
    carried = versions.velocities(session, run.id) if outer is not None else {}
    changes = []
    for ref in refs.values():
        if ref.block in put_together:
            terms, aggregate = put_together[ref.block]
            changes.append(
                Change(block=ref, terms=terms, aggregate=aggregate, outer=outer, velocity=carried.get(ref.block), codecs=codecs[ref.block])
            )
    beside = next((change for change in changes if change.block.block == ADAPTERS), None)
    if beside is not None and spec.adapters is not None:
        changes += [
            Change(
                block=ref, terms=beside.terms, beside=AdaptersBase(block=beside.block, scale=spec.adapters.scale), codecs=codecs[ref.block]
            )
            for ref in refs.values()
            if ref.block in folded
        ]
    return changes


def _folded(session: Session, run: Run, spec: RunFile, weights: Sequence[float]) -> set[str]:
    """The blocks with matrices that take up what the mean of adapters leaves out: of one whole delta it is nothing."""
    if spec.adapters is None or spec.adapters.combine != "exact" or not weights or list(weights) == [1.0]:
        return set()
    tensors = {block.name: {t.name for t in block.tensors} for block in queries.blocks_of(session, run.id, tensors=True)}
    return {name for name, own in tensors.items() if any(factors_of(weight)[0] in tensors[ADAPTERS] for weight in own)}


def overdue(session: Session, now: datetime) -> list[tuple[str, int]]:
    """The open rounds whose deadline has passed: ids of their runs, and numbers."""
    open_rounds = (
        select(Round.run_id, Round.number, Run.spec)
        .join(Run, Run.id == Round.run_id)
        .where(Round.state == RoundState.OPEN, Run.state == RunState.RUNNING)
        .order_by(Round.run_id)
    )
    found = []
    for run_id, number, spec in session.execute(open_rounds).all():
        deadline_s = spec.schedule.wave_deadline_s
        if deadline_s is None:
            continue
        waiting = (Assignment.run_id == run_id) & (Assignment.round == number) & ~Assignment.applied
        accepted_at = session.scalars(select(Assignment.judged_at).where(waiting, Assignment.state == AssignmentState.ACCEPTED)).all()
        deadline = deadline_of(accepted_at, deadline_s)
        if deadline is not None and now >= deadline:
            found.append((run_id, number))
    return found


def apply_overdue(session: Session, run_id: str, now: datetime) -> None:
    """Look after the deadlines of a run."""
    for number in [number for of, number in overdue(session, now) if of == run_id]:
        apply_if_due(session, session.get_one(Run, run_id, with_for_update=True), number, now)
