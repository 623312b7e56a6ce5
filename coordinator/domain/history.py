"""The history of a run's blocks: how each version came to be, which versions led to which, and how far back it is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class VersionOrigin(StrEnum):
    BASE = "base"
    """as it was prepared"""
    APPLIED = "applied"
    """the deltas of a round were added to its parent"""
    RESTORED = "restored"
    """it has the bytes of its parent, an older version: what came in between is undone"""
    AVERAGED = "averaged"
    """the mean of versions that the block had over the last rounds: the run ended with it. Its parent is the last of them"""
    BEST = "best"
    """the bytes of an older one, with which the model scored best: the run ended with it. Its parent is the last version before"""
    CALIBRATED = "calibrated"
    """a head that the run ended with, as the held-out rows calibrate it. Its parent is that head as it was trained"""
    FOUND = "found"
    """it was there when histories began to be kept: what led to it is not known"""


@dataclass(frozen=True)
class VersionFacts:
    """What the rules need to know of a version."""

    block: str
    version: int
    origin: str
    parent: int | None
    """the version that it was made of, or whose bytes it has; None: the history of the block begins here"""
    round: int | None
    """in which it was made; None: before the first, or by going back"""
    exact: bool
    """its bytes are kept, whatever leads to them"""


def lineage(versions: Mapping[int, VersionFacts], last: int) -> list[VersionFacts]:
    """From version `last` back to where its history begins: what the version is made of, without what was undone.

    What has only the bytes of another is not in it. Versions that are not known end it.
    """
    found: list[VersionFacts] = []
    at: int | None = last
    while at is not None and (facts := versions.get(at)) is not None:
        if facts.origin != VersionOrigin.RESTORED:
            found.append(facts)
        at = facts.parent if facts.parent is not None and facts.parent < at else None
    return found


@dataclass(frozen=True)
class KeptVersions:
    """What retention decides: which versions of a run can be made again from now on, and of which the bytes are kept for it."""

    exact: frozenset[tuple[str, int]]
    kept: frozenset[tuple[str, int]]


def to_keep(lines: Mapping[str, Sequence[VersionFacts]], rounds_done: int, rounds: int) -> KeptVersions:
    """Enough to go back to any of the last `rounds` rounds. `lines`: of each block its lineage, the present version first.

    The bytes of whole blocks are large and deltas are small: so the model is kept as it was at some rounds, as many apart as are to be
    kept, and between them the deltas. That is at most two models beside the present one, and the deltas of twice as many rounds.
    """
    marks = {rounds_of(facts) for line in lines.values() for facts in line if facts.exact}
    exact = {(f.block, f.version) for line in lines.values() for f in line if f.exact}
    if rounds_done - max(marks, default=-1) >= max(rounds, 1):
        marks.add(rounds_done)
        exact |= {(line[0].block, line[0].version) for line in lines.values() if line}
    horizon = max((mark for mark in marks if mark <= rounds_done - rounds), default=0)
    kept: set[tuple[str, int]] = set()
    for line in lines.values():
        for facts in line:
            kept.add((facts.block, facts.version))
            if (facts.block, facts.version) in exact and rounds_of(facts) <= horizon:
                break
    return KeptVersions(frozenset(exact & kept), frozenset(kept))


def rounds_of(facts: VersionFacts) -> int:
    """Rounds that were done when a version came to be."""
    return 0 if facts.round is None else facts.round + 1
