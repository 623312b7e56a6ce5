"""A lane's door to the table of jobs: takes one, and does not rest before it is written what came of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.outage import is_away
from fedcybgd.coordinator.domain.jobs.kinds import GIVES_WAY
from fedcybgd.coordinator.domain.jobs.lease import Hold
from fedcybgd.coordinator.jobs.patience import FIRST_WAIT_S, LONGEST_WAIT_S, Patience
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.records import job_leases, jobs
from fedcybgd.shared.contract.errors import FedError

T = TypeVar("T")


@dataclass(frozen=True)
class Taken:
    """A job, out of the transaction that took it."""

    id: str
    kind: str
    payload: BaseModel
    subject: str
    hold: Hold


class Queue:
    """Each call is one transaction. A database that is away is waited for, and what was to be written is kept until then."""

    def __init__(self, lane: str, database: Database, patience: Patience, owner: str) -> None:
        self._lane, self._database, self._patience, self._owner = lane, database, patience, owner
        self._taken: str | None = None
        """kind of the last job"""
        self._aside: dict[str, tuple[float, float]] = {}
        """ids of jobs for which there was no room: until when others go first, and for how long that is"""

    def take(self) -> Taken | None:
        """The next job of the lane, now running."""
        last, at = GIVES_WAY if self._taken in GIVES_WAY else (), time.monotonic()
        self._aside = {job: (until, wait) for job, (until, wait) in self._aside.items() if at < until + LONGEST_WAIT_S}
        aside = [job for job, (until, _) in self._aside.items() if at < until]

        def taken(session: Session) -> Taken | None:
            job = jobs.take(session, self._lane, self._owner, utcnow(), last, aside)
            return None if job is None else Taken(job.id, job.kind, job.payload, job.subject, job_leases.hold_of(job))

        job = self.ask("look for a job", taken)
        self._taken = job.kind if job is not None else None
        return job

    def complete(self, job: Taken, result: BaseModel) -> None:
        self.ask(_what_came_of(job), lambda session: outcomes.complete(session, job.hold, result, utcnow()))

    def fail(self, job: Taken, code: str, message: str, died: bool) -> None:
        self.ask(_what_came_of(job), lambda session: outcomes.fail(session, job.hold, code, message, utcnow(), engine_died=died))

    def set_aside(self, job: Taken, error: FedError) -> None:
        """Have the others go first for a while, which grows."""
        _, wait = self._aside.get(job.id, (0.0, FIRST_WAIT_S))
        self._aside[job.id] = time.monotonic() + wait, min(2 * wait, LONGEST_WAIT_S)
        self.ask(_what_came_of(job), lambda session: outcomes.wait(session, job.hold, error.code, error.message, utcnow()))

    def ask(self, what: str, step: Callable[[Session], T]) -> T:
        def transaction() -> T:
            with self._database.transaction() as session:
                return step(session)

        return self._patience.take(what, transaction, is_away)


def _what_came_of(job: Taken) -> str:
    return f"write what came of job {job.id} ({job.kind})"
