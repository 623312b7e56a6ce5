"""Agents that are not heard of any more: others may have what was meant for them."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.domain.outlook import at
from fedcybgd.coordinator.services.path import openings
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import agents as states

NAMED = 5
"""Agents that one event names; each of them has its own as long as they are so few."""


def silence(session: Session, now: datetime, after: timedelta) -> None:
    """Mark the active agents silent that were not seen for longer than `after`: all of them in one statement."""
    found = sorted(states.missed_since(session, now - after), key=lambda agent: agent.name)
    if not found:
        return
    if len(found) <= NAMED:
        for agent in found:
            assert agent.last_seen_at is not None, "who was never seen is not missed"
            text = f"agent {agent.name} has not been seen since {at(agent.last_seen_at)}"
            record(session, now, "warning", "agent_silent", text, agent_id=agent.id)
    else:
        names = ", ".join(agent.name for agent in found[:NAMED])
        first = min(seen for agent in found if (seen := agent.last_seen_at))
        text = f"{len(found)} agents are silent, {names} and {len(found) - NAMED} more: not seen since {at(first)} or later"
        record(session, now, "warning", "agent_silent", text)
    signals.forget(session, *(agent.id for agent in found))
    openings.leave_to_others(session, [agent.id for agent in found])
