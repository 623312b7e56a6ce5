"""What shows that an agent's calls do not get through as they should: its claims arrive, and renewals or transfers do not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNHEARD_S, UNHEARD_SHARE = 20.0, 0.5
"""Of a lease so long: whoever renews each third of it, as the protocol asks, has missed one; and `fedagent`, which does every 2 seconds, ten or more."""
TROUBLED_S = 30.0
"""For so long an agent takes a silence for a restart of the coordinator."""
AGAIN = 2
"""Times, in one visit or in several; the first is weather."""


@dataclass(frozen=True)
class Held:
    """A lease that an agent has now, and what it has said under it."""

    agent: str
    block: str
    unheard_s: float
    """since it was renewed, or else taken"""
    lease_s: float
    """for how long it holds without renewal"""
    phase: str | None = None
    """None: nothing was said since it was taken"""
    trouble: str | None = None
    """what it says that it is held up by, in words"""
    troubled_s: float = 0.0
    """since it said so first"""


def seen(held: Sequence[Held], cut: Mapping[str, Counter[str]]) -> list[str]:
    """A line for each agent that is held up; `cut`: agent → what held it up → how often."""
    now = {one.agent: line for one in held if (line := _now(one)) is not None}
    again = {
        agent: f"{agent} was held up {why.total()} times: {', '.join(f'{number} × {code}' for code, number in why.most_common())}"
        for agent, why in sorted(cut.items())
        if why.total() >= AGAIN
    }
    return list((now | again | now).values())  # of now first, and of an agent what is now


def _now(one: Held) -> str | None:
    if one.unheard_s >= max(UNHEARD_S, UNHEARD_SHARE * one.lease_s):
        if one.phase is None:
            return f"{one.agent} took {one.block} {one.unheard_s:.0f} s ago and has said nothing since: its claim arrived, no renewal has"
        return f"{one.agent} said {one.unheard_s:.0f} s ago that it is {one.phase}, at {one.block}, and nothing since"
    if one.trouble is not None and one.troubled_s >= TROUBLED_S:
        return f"{one.agent} is held up while {one.phase}, at {one.block}, for {one.troubled_s:.0f} s: {one.trouble}"
    return None
