"""Opens the round that follows: who trains which blocks, and what they are told. Step 8 leads here, and the start of a run."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Assignment, Round, Run
from fedcybgd.coordinator.domain.assignment import ASSIGNMENT
from fedcybgd.coordinator.domain.corrections import corrections_of
from fedcybgd.coordinator.domain.exposure import ExposureBudgetTooSmall
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.quarantine import passed_over
from fedcybgd.coordinator.domain.round import ROUND, RoundState
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.emulators import exposure_budget
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.path import ahead, conclude, give_up
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.training import Corrections, ParameterGroup, Training, TrainSettings


def open_next(session: Session, run: Run, now: datetime) -> None:
    """Open the round that follows the closed ones, or end the run when there is none; a paused run stays as it is."""
    number = run.rounds_done
    if conclude.is_over(session, run):
        conclude.go_on(session, run, now)
        return
    last = queries.last_round(session, run.id)
    if run.state != RunState.RUNNING or (last is not None and last.state != RoundState.CLOSED):
        return
    spec = run.spec
    if spec.stop is not None and number and scores.is_due(run, number) and scores.is_awaited(session, run):
        return  # whether it goes on, they say: what comes of them leads here again
    if last is not None:  # those of the start are there already
        run.participants = [*run.participants, *readiness.newcomers(session, run, spec)]
    try:
        seats = ahead.seats(session, run, spec, number)
    except ExposureBudgetTooSmall as error:
        give_up.halt(session, run, error.message, now)
        return
    session.add(
        Round(run_id=run.id, number=number, cycle=seats[0].cycle, seats=seats, blocks=method_of(spec).recorded(seats), state=ROUND.start, opened_at=now,
              loss_before=last.loss_after if last is not None else None)
    )  # fmt: skip
    there = readiness.there(session, run.id, [seat.agent for seat in seats if seat.agent is not None])
    ahead.request(session, run, spec, number, now)
    made = [assign(session, run, spec, seat, now, there) for seat in seats]
    # What is meant for somebody who is there is not hopeless.
    open_to_all = [assignment for assignment in made if assignment.meant_for is None]
    if spec.exposure.max_exact_blocks is not None:
        for assignment in open_to_all:
            give_up.pause_if_hopeless(session, run, assignment, "too many of its blocks were seen by others who stood in", now)
    elif open_to_all == made:
        # Nobody is excluded yet and nothing has failed: one stands for all.
        give_up.pause_if_hopeless(session, run, made[0], "nobody who takes part has data that fit", now)


def assign(
    session: Session,
    run: Run,
    spec: RunFile,
    seat: Seat,
    now: datetime,
    there: Collection[str],
    failures: int = 0,
    excluded: Sequence[str] = (),
    failed: Mapping[str, int] | None = None,
) -> Assignment:
    """Offer a seat to the agent that it is meant for, if it is `there`, or to anybody."""
    assignment = Assignment(
        id=keys.new_id("asg"), run_id=run.id, round=seat.round, seat=seat.number, blocks=list(seat.blocks), state=ASSIGNMENT.start,
        attempt=0, failures=failures, failed=dict(failed or {}), meant_for=seat.agent, excluded=list(excluded),
        waiting_since=now,
        train=train_settings(spec, seat, _corrections(session, run, spec, seat)), applied=False,
    )  # fmt: skip
    if seat.agent is not None:
        can_come = seat.agent not in {*excluded, *passed_over(assignment.failed)} and seat.agent in there
        if can_come and spec.exposure.max_exact_blocks is not None:
            can_come = exposure_budget.may_take(session, run, assignment, session.get_one(Agent, seat.agent))
        if not can_come:
            assignment.meant_for = None
    session.add(assignment)
    signals.offer(session, assignment.id)
    return assignment


def _corrections(session: Session, run: Run, spec: RunFile, seat: Seat) -> Corrections | None:
    if spec.corrections is None:
        return None
    blocks = {block.name: block.tensors for block in queries.blocks_of(session, run.id, tensors=True)}
    return corrections_of(spec, seat, blocks, run.trained_blocks)


def train_settings(spec: RunFile, seat: Seat, corrections: Corrections | None = None) -> TrainSettings:
    """What an agent is told about a visit: all that the run file says of training, and what the method makes of its learning rates."""
    along = seat.along(spec.schedule.always)
    groups = [ParameterGroup(blocks=list(seat.blocks), learning_rate=seat.learning_rate)]
    if along:
        groups.append(ParameterGroup(blocks=along, learning_rate=seat.always_learning_rate))
    train = spec.in_cycle(seat.cycle).train
    return TrainSettings(
        **{name: getattr(train, name) for name in Training.model_fields}, **dict(spec.task.spec), groups=groups,
        label_skew=spec.label_skew, head_start=seat.head_start, corrections=corrections, seed=seat.seed,
    )  # fmt: skip
