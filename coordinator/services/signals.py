"""What must happen after a commit, and only then: agents to ask, keys to forget, job lanes to start."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

OPENINGS = "openings"
OFFERED = "offered"
INVITED = "invited"
LANES = "lanes"
TURNED_DOWN = "turned_down"
AWAITED = "awaited"
OFFERS = "offers"
LET_GO = "let_go"
FORGET = "forget"


def openings_changed(session: Session) -> None:
    """Read anew which assignments wait for an agent: some may have been closed."""
    session.info[OPENINGS] = True


def offer(session: Session, *assignments: str) -> None:
    """Ask those who may take these assignments, whoever was asked before."""
    session.info.setdefault(OFFERED, set()).update(assignments)


def invite(session: Session, agents: Iterable[str]) -> None:
    """Let these agents look for work again, whatever they were asked before."""
    session.info.setdefault(INVITED, set()).update(agents)


def turn_down(session: Session, assignment_id: str, agent_id: str | None, reason: str) -> None:
    """Note that a claim found no emulator; it is acted upon in a transaction of its own, which locks in the usual order."""
    session.info.setdefault(TURNED_DOWN, []).append((assignment_id, agent_id, reason))


def awaits_emulator(session: Session, assignment_id: str) -> None:
    """Note that nobody can have an assignment before its emulator is made; then it is offered anew."""
    session.info.setdefault(AWAITED, set()).add(assignment_id)


def let_go(session: Session, agent_id: str) -> None:
    """Let the waiting claim of an agent go: it should ask anew."""
    session.info.setdefault(LET_GO, set()).add(agent_id)


def forget(session: Session, *agents: str) -> None:
    """What is known of these agents and their keys is not true any more."""
    session.info.setdefault(FORGET, set()).update(agents)


def offers_changed(session: Session) -> None:
    """Let all waiting claims go, so that agents say whether their data fit the new run."""
    session.info[OFFERS] = True


def start_lane(session: Session, lane: str) -> None:
    session.info.setdefault(LANES, set()).add(lane)


Signals = dict[str, Any]
