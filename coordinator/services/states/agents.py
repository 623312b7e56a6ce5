"""The transitions of an agent."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.agent import AGENT, AgentEvent, AgentState
from fedcybgd.coordinator.domain.quarantine import STRIKES, lasts

COME_BACK = [state for state, event in AGENT.table if event == AgentEvent.SEEN]


class Missed(NamedTuple):
    """An agent that fell silent."""

    id: str
    name: str
    last_seen_at: datetime | None


def seen(row: Agent, now: datetime) -> None:
    _go(row, AgentEvent.SEEN)
    row.last_seen_at = now


def seen_together(session: Session, ids: Collection[str], now: datetime) -> None:
    """Those of them that are not revoked, in one statement."""
    these = update(Agent).where(Agent.id.in_(ids), Agent.state.in_(COME_BACK))
    session.execute(these.values(state=AGENT.after(AgentState.SILENT, AgentEvent.SEEN), last_seen_at=now))


def missed_since(session: Session, before: datetime) -> Sequence[Missed]:
    """All active ones that were not seen since, in one statement."""
    these = update(Agent).where(Agent.state == AgentState.ACTIVE, Agent.last_seen_at < before)
    gone = these.values(state=AGENT.after(AgentState.ACTIVE, AgentEvent.MISSED)).returning(Agent.id, Agent.name, Agent.last_seen_at)
    return [Missed(*row) for row in session.execute(gone).all()]


def strike(row: Agent, now: datetime) -> bool:
    """It was passed over at a visit; whether it goes into quarantine by that. One more strike after it has come out brings it back."""
    row.strikes += 1
    if row.strikes < STRIKES:
        return False
    row.quarantined_until = now + lasts(row.quarantines)
    row.quarantines, row.strikes = row.quarantines + 1, STRIKES - 1
    return True


def out_of_quarantine(row: Agent) -> None:
    """Its time is over: it may try once more."""
    row.quarantined_until = None


def absolve(row: Agent) -> None:
    """It has sent a good delta, or the operator trusts it: nothing is held against it any more."""
    row.strikes, row.quarantines, row.quarantined_until = 0, 0, None


def revoke(row: Agent) -> None:
    _go(row, AgentEvent.REVOKE)


def _go(row: Agent, event: AgentEvent) -> None:
    row.state = AGENT.after(row.state, event)
