"""What must happen after a commit, and only then: agents to wake, job lanes to start."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

WAKE = "wake"
WAKE_ANY = "wake_any"
LANES = "lanes"


def wake_agents(session: Session, agents: Iterable[str]) -> None:
    """Answer the waiting claims of these agents."""
    session.info.setdefault(WAKE, set()).update(agents)


def wake_any(session: Session, places: int = 1) -> None:
    """Answer as many waiting claims as there are new places that anybody may take."""
    session.info[WAKE_ANY] = session.info.get(WAKE_ANY, 0) + places


def start_lane(session: Session, lane: str) -> None:
    session.info.setdefault(LANES, set()).add(lane)


Signals = dict[str, Any]
