"""Signs of life."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.agent import needs_seen
from fedcybgd.coordinator.services.agents import identity
from fedcybgd.coordinator.services.states import agents as states

TOGETHER = 5000
"""Agents in one statement: a statement has at most 32,766 parameters on SQLite."""


def seen(session: Session, agent_id: str, daemon: str | None, now: datetime) -> None:
    """Write a sign of life at once. Raises `AgentRevoked` for an agent that was revoked while its call waited.

    A call without the word of a daemon is none of an agent whose daemon has one: its owner looks (`fedagent status`, `check`).
    """
    agent = session.get_one(Agent, agent_id)
    identity.admit(agent)
    if (daemon is not None or agent.daemon is None) and needs_seen(agent.state, agent.last_seen_at, now):
        states.seen(agent, now)


def note(session: Session, agents: Collection[str], now: datetime) -> None:
    """Write the signs of life of many agents: to a few seconds, all at the same time."""
    ids = sorted(agents)
    for first in range(0, len(ids), TOGETHER):
        states.seen_together(session, ids[first : first + TOGETHER], now)
