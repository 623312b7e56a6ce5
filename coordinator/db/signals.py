"""What must happen after a commit, and only then: agents to ask, keys to forget, job lanes to start. A rollback throws it away."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

_KEY = "signals"


@dataclass
class Signals:
    """Of one transaction."""

    openings: bool = False
    """which assignments wait for an agent is to be read anew: some may have been closed"""
    offered: set[str] = field(default_factory=set)
    """ids of assignments: those who may take them are asked, whoever was asked before"""
    invited: set[str] = field(default_factory=set)
    """ids of agents that look for work again, whatever they were asked before"""
    let_go: set[str] = field(default_factory=set)
    """ids of agents whose waiting claims are let go: they should ask anew"""
    forgotten: set[str] = field(default_factory=set)
    """ids of agents of whom, or of whose keys, something is not true any more"""
    offers: bool = False
    """all waiting claims are let go, so that agents say whether their data fit the new run"""
    lanes: set[str] = field(default_factory=set)
    """lanes that have something to do"""
    holding: set[str] = field(default_factory=set)
    """ids of agents that hold a lease now: whichever coordinator they ask next has to look"""
    anew: bool = False
    """news may have been missed, or was too much to be told: whatever is kept in memory is read anew, and everybody asks anew"""


def of(session: Session) -> Signals:
    """What the transaction of a session has said so far."""
    signals: Signals = session.info.setdefault(_KEY, Signals())
    return signals


def openings_changed(session: Session) -> None:
    of(session).openings = True


def offer(session: Session, *assignments: str) -> None:
    of(session).offered.update(assignments)


def invite(session: Session, agents: Iterable[str]) -> None:
    of(session).invited.update(agents)


def let_go(session: Session, agent_id: str) -> None:
    of(session).let_go.add(agent_id)


def forget(session: Session, *agents: str) -> None:
    of(session).forgotten.update(agents)


def offers_changed(session: Session) -> None:
    of(session).offers = True


def holds(session: Session, agent_id: str) -> None:
    of(session).holding.add(agent_id)


def start_lane(session: Session, lane: str) -> None:
    of(session).lanes.add(lane)
