"""The run files of runs, each parsed once: a run keeps the one that it was made with."""

from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain.run_file import RunFile

T = TypeVar("T")
MOST_KEPT, MOST_VISITS = 256, 20_000


@dataclass(frozen=True)
class Parsed:
    file: RunFile
    open_to: frozenset[str] | None
    """names of the agents that the run is open to; None: all"""


_keeping = Lock()
_kept: dict[str, Parsed] = {}
_run_of: dict[str, str] = {}
"""id of an assignment → of its run, which never changes"""


def keep(kept: dict[str, T], key: str, value: T, most: int) -> None:
    """Remember it in place of the oldest; many threads do so at once."""
    with _keeping:  # else one could look for the oldest while another takes it away
        while len(kept) >= most:
            del kept[next(iter(kept))]
        kept[key] = value


def parsed(session: Session, run_id: str) -> Parsed:
    """The run file of a run that there is."""
    if (known := _kept.get(run_id)) is not None:
        return known
    file = session.scalars(select(Run.spec).where(Run.id == run_id)).one()
    made = Parsed(file, None if file.agents == "all" else frozenset(file.agents))
    keep(_kept, run_id, made, MOST_KEPT)
    return made


def of(session: Session, run_id: str) -> RunFile:
    return parsed(session, run_id).file


def of_assignment(session: Session, assignment_id: str) -> RunFile | None:
    """The run file of an assignment's run; None: there is no such assignment."""
    if (known := _kept.get(_run_of.get(assignment_id, ""))) is not None:
        return known.file
    run_id = session.scalar(select(Assignment.run_id).where(Assignment.id == assignment_id))
    if run_id is None:
        return None
    keep(_run_of, assignment_id, run_id, MOST_VISITS)
    return of(session, run_id)
