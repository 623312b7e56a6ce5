"""What a job asks of the machine that does it, where there are several to choose from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.kinds import JobKind

MEASURED = frozenset({JobKind.EVALUATE, JobKind.LOSS, JobKind.FIDELITY, JobKind.INFLUENCE, JobKind.IMPORTANCE})
"""Pays on a card, where there is one."""
SPREAD = frozenset({JobKind.APPLY, JobKind.ENCODE})
"""Done by several threads at once."""
MOST_CORES = 8
OF_A_PROCESS, TIMES = 1 << 30, 4
"""Bytes of memory: of torch and what is beside it, and how often the largest file of a job is held."""


@dataclass(frozen=True)
class Needs:
    cores: int
    memory: int
    """bytes"""
    card: bool = False


@dataclass(frozen=True)
class Node:
    """A machine, by what it has in all."""

    name: str
    cores: int
    memory: int
    cards: int = 0


def needs_of(kind: str, payload: BaseModel, threads: int, card: bool) -> Needs:
    """`threads` in which a job computes that is not spread; `card`: measure on one."""
    job = JobKind(kind)
    cores = max(threads, MOST_CORES) if job in SPREAD else threads
    return Needs(cores, OF_A_PROCESS + TIMES * _largest(payload), card and job in MEASURED)


def within(needs: Needs, nodes: Iterable[Node]) -> Needs | None:
    """As much of it as one of these machines has; None: there is none with a processor.

    What no machine has would be waited for without end.
    """
    able = [node for node in nodes if node.cores >= 1]
    with_cards = [node for node in able if node.cards] if needs.card else []
    best = max(with_cards or able, key=lambda node: (min(node.cores, needs.cores), node.memory), default=None)
    if best is None:
        return None
    return Needs(min(needs.cores, best.cores), min(needs.memory, best.memory), bool(with_cards))


def has_place(needs: Needs, nodes: Iterable[Node]) -> bool:
    """Whether one of these machines is large enough, be it busy or not."""
    return any(node.cores >= needs.cores and node.memory >= needs.memory and node.cards >= needs.card for node in nodes)


def _largest(value: Any) -> int:
    """Bytes of the largest file that is named."""
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    if isinstance(value, dict):
        return _largest(list(value.values()))
    if isinstance(value, BaseModel):
        size = getattr(value, "size", 0)
        return max([size if isinstance(size, int) else 0, *(_largest(part) for _, part in value)])
    return 0
