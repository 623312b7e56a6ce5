"""What becomes of a round that the gate has scored: it counts, counts half, or loses the deltas that do harm."""

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain.gate import GateVerdict, verdict
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, GatePayload, GateResult
from fedcybgd.coordinator.domain.jobs.registry import APPLY, Done
from fedcybgd.coordinator.domain.round import RoundEvent
from fedcybgd.coordinator.services.path import apply_round, close_round, judge
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import rounds


def decided(session: Session, done: Done[GatePayload, GateResult]) -> None:
    """Exactly once, whatever is repeated: a round that is not being applied any more has been decided on."""
    payload, result, now = done.payload, done.result, done.now
    run = session.get_one(Run, done.subject, with_for_update=True)
    round = apply_round.being_applied(session, run, payload.applied)
    if round is None:
        return
    found = verdict(result.losses, result.after)
    if found == GateVerdict.FINE:
        round.loss_before = round.loss_before if round.loss_before is not None else result.losses[-1]
        round.loss_after = result.after
        close_round.take_over(session, run, round, payload.applied, payload.made, now)
        return
    shown = "no number" if result.after is None else f"{result.after:.4g}"
    text = f"the held-out loss would rise from {result.losses[-1]:.4g} to {shown} with round {round.number}"
    if found == GateVerdict.WORSE and not payload.applied.halved:
        record(session, now, "warning", "delta_halved", f"{text}; its deltas are tried by half", run_id=run.id, round=round.number)
        jobs.enqueue(session, APPLY, run.id, _halved(payload.applied), now)
        return
    alone = {member: verdict(result.losses, loss) for member, loss in result.alone.items()}
    shown_wrong = [member for member, one in alone.items() if one != GateVerdict.FINE]
    wrong = shown_wrong or payload.applied.assignments
    # Where several do harm only together, one of them may have meant to: the others are not to blame.
    blamed = bool(shown_wrong) or len(wrong) == 1
    rounds.reopen(round, RoundEvent.REFUSE)
    session.flush()
    for member in wrong:
        judge.reject(session, run, session.get_one(Assignment, member, with_for_update=True), f"gate: {text}", now, blamed)
    session.flush()
    apply_round.apply_if_due(session, run, round.number, now)


def _halved(applied: ApplyPayload) -> ApplyPayload:
    changes = [change.model_copy(update={"terms": [term.scaled(0.5) for term in change.terms]}) for change in applied.changes]
    return applied.model_copy(update={"changes": changes, "halved": True})
