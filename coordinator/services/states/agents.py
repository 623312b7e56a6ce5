"""The transitions of an agent."""

from datetime import datetime

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.agent import AGENT, AgentEvent


def seen(row: Agent, now: datetime) -> None:
    _go(row, AgentEvent.SEEN)
    row.last_seen_at = now


def missed(row: Agent) -> None:
    _go(row, AgentEvent.MISSED)


def revoke(row: Agent) -> None:
    _go(row, AgentEvent.REVOKE)


def _go(row: Agent, event: AgentEvent) -> None:
    row.state = AGENT.after(row.state, event)
