"""What must happen after a commit, and only then: agents to wake, job lanes to start."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

WAKE = "wake"
WAKE_ANY = "wake_any"
LANES = "lanes"
TURNED_DOWN = "turned_down"
OFFERS = "offers"
LET_GO = "let_go"


def wake_agents(session: Session, agents: Iterable[str]) -> None:
    """Answer the waiting claims of these agents."""
    session.info.setdefault(WAKE, set()).update(agents)


def wake_any(session: Session, places: int = 1) -> None:
    """Answer as many waiting claims as there are new places that anybody may take."""
    session.info[WAKE_ANY] = session.info.get(WAKE_ANY, 0) + places


def offer(session: Session, meant_for: str | None) -> None:
    """Tell whoever may take a new place: the agent that it is meant for, or any one."""
    if meant_for is None:
        wake_any(session)
    else:
        wake_agents(session, [meant_for])


def turn_down(session: Session, assignment_id: str, agent_id: str | None, reason: str) -> None:
    """Note that a claim found no emulator; it is acted upon in a transaction of its own, which locks in the usual order."""
    session.info.setdefault(TURNED_DOWN, []).append((assignment_id, agent_id, reason))


def let_go(session: Session, agent_id: str) -> None:
    """Let the waiting claim of an agent go: it should ask anew."""
    session.info.setdefault(LET_GO, set()).add(agent_id)


def offers_changed(session: Session) -> None:
    """Let all waiting claims go, so that agents say whether their data fit the new run."""
    session.info[OFFERS] = True


def start_lane(session: Session, lane: str) -> None:
    session.info.setdefault(LANES, set()).add(lane)


Signals = dict[str, Any]
