"""The one question about work that waits: who can take it, and are they there?"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fedcybgd.coordinator.domain.standing import TAKES_PART, Standing

NAMED = 5
"""Agents that are named of a kind; of the others there is a number."""


class OutlookKind(StrEnum):
    AWAITED = "awaited"
    """it waits for a certain agent until a certain time"""
    OPEN = "open"
    """somebody is there who may take it at once"""
    STUCK = "stuck"
    """nobody could go on"""


@dataclass(frozen=True)
class Candidate:
    """An agent that a run is open to, as somebody for one piece of its work. Who was revoked is none."""

    name: str
    standing: Standing
    reason: str | None = None
    """why its data do not fit"""
    excluded: bool = False
    """it is not asked (again) for this"""
    beyond_budget: bool = False
    """it has seen too many blocks exact"""
    meant: bool = False
    """the work is meant for it"""
    last_seen_at: datetime | None = None
    quarantined_until: datetime | None = None

    @property
    def can(self) -> bool:
        """It is there, and may take it."""
        return self.standing in TAKES_PART and not self.excluded and not self.beyond_budget

    @property
    def comes_back(self) -> bool:
        """It is there and will be asked again, by a time that is known."""
        return self.standing == Standing.QUARANTINED and not self.excluded and not self.beyond_budget


@dataclass(frozen=True)
class Outlook:
    """What is to be expected of a piece of work that waits."""

    kind: OutlookKind
    text: str = ""
    """for people: whom it waits for, or what is needed"""


def outlook(candidates: Sequence[Candidate], own_until: datetime | None) -> Outlook:
    """Of work that these could take; until `own_until` it is only for whom it is meant for."""
    able = [c for c in candidates if c.can]
    if own_until is not None and (own := [c for c in able if c.meant]):
        return Outlook(OutlookKind.AWAITED, f"waits for {own[0].name} until {at(own_until)}")
    if able:
        return Outlook(OutlookKind.OPEN, f"open to {len(able)}")
    back = [c for c in candidates if c.comes_back and c.quarantined_until is not None]
    if back:
        first = min(c.quarantined_until for c in back if c.quarantined_until is not None)
        return Outlook(OutlookKind.AWAITED, f"waits for agents in quarantine, until {at(first)}: {_why_not(candidates)}")
    return Outlook(OutlookKind.STUCK, f"{_why_not(candidates) or 'nobody may take it'}; {_needed(candidates)}")


def at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _why_not(candidates: Sequence[Candidate]) -> str:
    """Why none of them takes it: a number and names for each reason."""
    said: dict[str, list[str]] = {}
    for candidate in candidates:
        reason, since = _reason(candidate)
        said.setdefault(reason, []).append(candidate.name + since)
    return ", ".join(f"{len(names)} {reason} ({_listed(names)})" for reason, names in said.items())


def _reason(candidate: Candidate) -> tuple[str, str]:
    match candidate.standing:
        case Standing.UNFIT:
            return f"excluded: {candidate.reason or 'its data do not fit'}", ""
        case Standing.SILENT:
            return "silent", f" since {at(candidate.last_seen_at)}" if candidate.last_seen_at else ""
        case Standing.NEVER_SEEN:
            return "never seen", ""
    if candidate.excluded:
        return "excluded: failed at it", ""
    if candidate.beyond_budget:
        return "beyond the exposure budget", ""
    until = candidate.quarantined_until
    return "in quarantine", f" until {at(until)}" if until is not None else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _needed(candidates: Sequence[Candidate]) -> str:
    """What an operator, or an agent's owner, can do about it."""
    ways = []
    standings = {c.standing for c in candidates}
    if standings & {Standing.SILENT, Standing.NEVER_SEEN}:
        ways.append("start an agent (`fedagent run`)")
    if Standing.UNFIT in standings:
        ways.append("mend what keeps the excluded (`fedagent check` on their machines says what)")
    if any(c.comes_back for c in candidates):
        ways.append("release one (`fedcoord agents release`)")
    if any(c.excluded for c in candidates):
        ways.append("resume to ask all of them again")
    return ", or ".join([*ways, "enrol another agent"])
