"""What the coordinator is told of a failure: never what a row or a setting holds."""

import traceback
from pathlib import Path

from fedcybgd.agent.messages import Facts

PLAIN_REASONS = frozenset(
    {
        "memory_limit",
        "disk_limit",
        "disk_full",
        "shard_corrupt",
        "trainer_died",
        "stalled",
        "delta_refused",
        "manifest_invalid",
        "policy_refused",
    }
)
"""Reasons whose messages are our own words and numbers. Any other may quote a row of the data or agent.toml: that stays here."""


def told_to_coordinator(reason: str, message: str, facts: str | None) -> str:
    """What the coordinator reads of a failure: facts, and nothing that a row or agent.toml holds."""
    if reason == "not_consented":
        return "its owner has tied no data to this run"
    if facts is not None and reason != "policy_refused":
        return f"{facts}; the agent's own log says more"
    return message if reason in PLAIN_REASONS else "the agent's own log says more"


def told_of(error: Exception) -> str:
    """The class of an unexpected error, and the last line of our own that it came through."""
    root = Path(__file__).parents[1]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(root / "agent")]
    place = f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}" if frames else None
    return Facts(error=type(error).__name__, place=place).text()
