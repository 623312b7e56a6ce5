"""The order of a block cycle: which block comes when, whose turn it is, and from which seed it is trained."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from fedcybgd.coordinator.domain.exposure import room_of, team_size
from fedcybgd.coordinator.domain.run_file import RunFile


def rounds_of(rounds_per_cycle: Callable[[RunFile], int], spec: RunFile, cycles: int) -> int:
    """Of the first `cycles` cycles, at least one. `rounds_per_cycle` goes by what the run file says of a cycle."""
    return rounds_per_cycle(spec.in_cycle(0)) + (cycles - 1) * rounds_per_cycle(spec.in_cycle(1))


def cycle_of(rounds_per_cycle: Callable[[RunFile], int], spec: RunFile, round: int) -> tuple[int, int]:
    """In which cycle a round is, and its place there, all counted from 0."""
    first = rounds_per_cycle(spec.in_cycle(0))
    if round < first:
        return 0, round
    cycle, place = divmod(round - first, rounds_per_cycle(spec.in_cycle(1)))
    return cycle + 1, place


def cycle_order(spec: RunFile, blocks: Sequence[str], cycle: int, ranking: Sequence[str] = ()) -> list[str]:
    """The blocks (given in model order) in the order in which cycle number `cycle` visits them. `ranking`: by importance, where that is known."""
    order = list(blocks)
    match spec.schedule.order:
        case "descending":
            order.reverse()
        case "random":
            random.Random(f"{spec.seed}:{cycle}").shuffle(order)  # noqa: S311 - an order, not a secret
        case "importance":
            order = [*(name for name in ranking if name in order), *(name for name in order if name not in ranking)]
        case "ascending":
            pass
    return order


def visit_seed(run_seed: int, round: int, block: str) -> int:
    """63 bits from (run, round, block): never from the attempt or the clock, so that a repeated visit repeats its result."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{round}:{block}".encode()).digest()[:8], "big") >> 1


def planned(spec: RunFile, blocks: Sequence[str], agents: int, cycle: int, piece: Sequence[str], common: Collection[str]) -> list[int]:
    """Numbers of the agents for the blocks of one wave."""
    room = room_of(spec, common)
    numbered = [name for name in blocks if room is None or name not in common]
    team = team_size(len(numbered), agents, room)
    turn = cycle % team if spec.schedule.agents == "rotating" else 0
    number = {name: i for i, name in enumerate([*numbered, *(name for name in blocks if name not in numbered)])}
    return _without_clashes([_Team(number[block], turn, team, agents) for block in piece])


@dataclass(frozen=True)
class _Team:
    """Numbers of the agents that a block may be planned for, the preferred one first: not written out, for they may be all of them."""

    block: int
    turn: int
    size: int
    agents: int

    def __iter__(self) -> Iterator[int]:
        return ((self.block + (self.turn + step) % self.size) % self.agents for step in range(self.size))

    @property
    def first(self) -> int:
        return next(iter(self))


def _without_clashes(teams: Sequence[_Team]) -> list[int]:
    """One of `agents` agents for each team, the first of the team by preference, and none for two while that can be avoided.

    Where two want the same, the earlier one in the wave gets it; the other takes the next free one of its team; if none is free,
    others move along (an augmenting path of a bipartite matching). What cannot be matched so (fewer agents than blocks, say) goes
    to agents that have one already, then two, and so on: they do it one after another. Nothing is drawn: the same every time.
    """
    chosen: dict[int, int] = {}
    holders: dict[int, list[int]] = defaultdict(list)

    def take(place: int, agent: int) -> None:
        chosen[place] = agent
        holders[agent].append(place)

    def place_one(place: int, most: int, tried: set[int]) -> bool:
        for agent in teams[place]:
            if agent not in tried and len(holders[agent]) < most:
                take(place, agent)
                return True
        for agent in teams[place]:
            if agent in tried:
                continue
            tried.add(agent)
            for other in list(holders[agent]):
                holders[agent].remove(other)
                if place_one(other, most, tried):
                    take(place, agent)
                    return True
                holders[agent].append(other)
        return False

    most = 0
    while len(chosen) < len(teams):
        most += 1
        left = [place for place in range(len(teams)) if place not in chosen]
        for place in left:
            if len(holders[teams[place].first]) < most:
                take(place, teams[place].first)
        for place in left:
            if place not in chosen:
                place_one(place, most, set())
    return [chosen[place] for place in range(len(teams))]
