"""The run files of runs, each parsed once: a run keeps the one that it was made with."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Run
from fedcybgd.coordinator.domain.run_file import RunFile

MOST_KEPT, MOST_VISITS = 256, 20_000


@dataclass(frozen=True)
class Parsed:
    file: RunFile
    open_to: frozenset[str] | None
    """names of the agents that the run is open to; None: all"""


_kept: dict[str, Parsed] = {}
_run_of: dict[str, str] = {}
"""id of an assignment → of its run, which never changes"""


def parsed(session: Session, run_id: str) -> Parsed:
    """The run file of a run that there is."""
    if (known := _kept.get(run_id)) is not None:
        return known
    file = session.scalars(select(Run.spec).where(Run.id == run_id)).one()
    made = Parsed(file, None if file.agents == "all" else frozenset(file.agents))
    while len(_kept) >= MOST_KEPT:
        _kept.pop(next(iter(_kept), ""), None)
    _kept[run_id] = made
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
    while len(_run_of) >= MOST_VISITS:
        _run_of.pop(next(iter(_run_of), ""), None)
    _run_of[assignment_id] = run_id
    return of(session, run_id)
