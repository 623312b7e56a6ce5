"""The states of an agent."""

from datetime import datetime, timedelta
from enum import StrEnum

from fedcybgd.coordinator.domain.machine import Machine


class AgentState(StrEnum):
    ENROLLED = "enrolled"
    ACTIVE = "active"
    SILENT = "silent"
    REVOKED = "revoked"


class AgentEvent(StrEnum):
    SEEN = "seen"
    MISSED = "missed"
    REVOKE = "revoke"


AGENT = Machine(
    "agent", AgentState, AgentEvent, AgentState.ENROLLED,
    {
        (AgentState.ENROLLED, AgentEvent.SEEN): AgentState.ACTIVE,
        (AgentState.ACTIVE, AgentEvent.SEEN): AgentState.ACTIVE,
        (AgentState.SILENT, AgentEvent.SEEN): AgentState.ACTIVE,
        (AgentState.ACTIVE, AgentEvent.MISSED): AgentState.SILENT,
        (AgentState.ENROLLED, AgentEvent.REVOKE): AgentState.REVOKED,
        (AgentState.ACTIVE, AgentEvent.REVOKE): AgentState.REVOKED,
        (AgentState.SILENT, AgentEvent.REVOKE): AgentState.REVOKED,
    },
)  # fmt: skip

SEEN_EVERY = timedelta(seconds=30)
"""A sign of life is written down at most this often. Longer than a poll lasts: every second claim of an idle agent costs no write."""


def needs_seen(state: str, last_seen: datetime | None, now: datetime) -> bool:
    """A sign that is later than now is of a clock that was ahead, and none."""
    return state != AgentState.ACTIVE or last_seen is None or not timedelta() <= now - last_seen < SEEN_EVERY
