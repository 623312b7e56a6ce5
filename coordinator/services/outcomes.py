"""What becomes of a finished or failed job: a line for each kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Job, Model, Run
from fedcybgd.coordinator.domain.jobs import registry
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.jobs.lease import Hold, is_held
from fedcybgd.coordinator.domain.jobs.registry import MOST_DEATHS, Done, Failed, JobType
from fedcybgd.coordinator.services.emulators import fidelity, shards
from fedcybgd.coordinator.services.operate import exports, models, prepare, undo
from fedcybgd.coordinator.services.path import close_round, conclude, gated, give_up, harm, judge, lost_delta, scored
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import jobs as states
from fedcybgd.shared.contract.plain import plain

P = TypeVar("P", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)


class Effect(Protocol):
    """What a job changes when it ends, whatever its types are."""

    def complete(self, session: Session, job: Job, result: BaseModel, now: datetime) -> None: ...

    def fail(self, session: Session, job: Job, code: str, message: str, now: datetime) -> None: ...


@dataclass(frozen=True)
class Outcome(Generic[P, R]):
    of: JobType[P, R]
    succeeded: Callable[[Session, Done[P, R]], None]
    failed: Callable[[Session, Failed[P]], None]

    def complete(self, session: Session, job: Job, result: BaseModel, now: datetime) -> None:
        done = Done(job.subject, self.of.payload_of(job.payload), self.of.result_of(result), now)
        states.finish(job, done.result, now)
        self.succeeded(session, done)

    def fail(self, session: Session, job: Job, code: str, message: str, now: datetime) -> None:
        states.fail(job, code, message, now)
        self.failed(session, Failed(self.of.kind, job.subject, self.of.payload_of(job.payload), code, message, now))


def _nothing_more(session: Session, done: Done[BaseModel, BaseModel]) -> None:
    """The result in the job's row is all."""


OUTCOMES: Mapping[JobKind, Effect] = {
    JobKind.ADMIT: Outcome(registry.ADMIT, judge.judged, lost_delta.judging_failed),
    JobKind.APPLY: Outcome(registry.APPLY, close_round.applied, lost_delta.judging_failed),
    JobKind.GATE: Outcome(registry.GATE, gated.decided, lost_delta.judging_failed),
    JobKind.ENCODE: Outcome(registry.ENCODE, shards.encoded, give_up.encoding_failed),
    JobKind.RESTORE: Outcome(registry.RESTORE, undo.restored, undo.failed),
    JobKind.IMPORT: Outcome(registry.IMPORT, models.imported, models.import_failed),
    JobKind.PREPARE: Outcome(registry.PREPARE, prepare.prepared, prepare.prepare_failed),
    JobKind.INFLUENCE: Outcome(registry.INFLUENCE, prepare.influence_measured, prepare.prepare_failed),
    JobKind.IMPORTANCE: Outcome(registry.IMPORTANCE, prepare.importance_measured, prepare.importance_failed),
    JobKind.EXPORT: Outcome(registry.EXPORT, _nothing_more, exports.report_failed),
    JobKind.EVALUATE: Outcome(registry.EVALUATE, scored.scored, scored.score_failed),
    JobKind.CONCLUDE: Outcome(registry.CONCLUDE, conclude.concluded, conclude.failed),
    JobKind.LOSS: Outcome(registry.LOSS, harm.loss_measured, harm.loss_failed),
    JobKind.FIDELITY: Outcome(registry.FIDELITY, fidelity.fidelity_measured, fidelity.fidelity_failed),
}


def complete(session: Session, hold: Hold, result: BaseModel, now: datetime) -> None:
    """Record a job's result and let it take effect, in one transaction: exactly once, whatever is repeated, and by whomever."""
    if (job := _held(session, hold)) is not None:
        OUTCOMES[JobKind(job.kind)].complete(session, job, result, now)


def fail(session: Session, hold: Hold, code: str, message: str, now: datetime, engine_died: bool = False) -> None:
    """Record that a job failed; `engine_died` lets it wait again, until too many have, and is told of."""
    if (job := _held(session, hold)) is None:
        return
    if engine_died and job.deaths + 1 < MOST_DEATHS:
        states.interrupt(job, engine_died=True)
        signals.start_lane(session, job.lane)
        of, run_id = _whose(session, job)
        text = f"the {job.kind} of {of} is begun again, after try {job.deaths} of {MOST_DEATHS}: {plain(message)}"
        record(session, now, "warning", code, text, run_id=run_id)
        return
    OUTCOMES[JobKind(job.kind)].fail(session, job, code, plain(message), now)  # a name of a file may be what no database stores


def wait(session: Session, hold: Hold, code: str, message: str, now: datetime) -> None:
    """There is no room for what a job makes: it waits for it as if it had not begun, and is told of once."""
    if (job := _held(session, hold)) is None:
        return
    begins = job.error is None
    states.stand_aside(job, code, message)
    if (model := session.get(Model, job.subject)) is not None:
        model.reason = message
    if begins:
        of, run_id = _whose(session, job)
        record(session, now, "warning", code, f"the {job.kind} of {of} waits for room: {message}", run_id=run_id)


def _whose(session: Session, job: Job) -> tuple[str, str | None]:
    """What people call what a job is for; and the run's id where it is one."""
    if (run := session.get(Run, job.subject)) is not None:
        return f"run {run.name}", run.id
    model = session.get(Model, job.subject)
    return f"model {model.name}" if model is not None else job.subject, None


def _held(session: Session, hold: Hold) -> Job | None:
    """The job, if it is still its who says so: what a lost owner made of it, or how it failed, is nothing."""
    job = session.get_one(Job, hold.job, with_for_update=True)
    return job if is_held(job.state, job.owner, job.tries, hold) else None
