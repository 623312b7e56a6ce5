"""The order of visits: which blocks are trained in which round, by whom, at which learning rate, from which seed."""

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedcybgd.coordinator.domain.exposure import room_of, team_size
from fedcybgd.coordinator.domain.run_file import RunFile


@dataclass(frozen=True)
class Visit:
    """One block of one round."""

    round: int
    cycle: int
    block: str
    agent: str | None
    """The agent that it is meant for; None: whoever comes first."""
    learning_rate: float
    always_learning_rate: float
    seed: int


def rounds_per_cycle(spec: RunFile, blocks: Sequence[str]) -> int:
    """A wave larger than the number of blocks makes one round of a cycle."""
    return -(-len(blocks) // spec.schedule.wave)


def rounds_in(spec: RunFile, blocks: Sequence[str]) -> int:
    return spec.schedule.cycles * rounds_per_cycle(spec, blocks)


def cycle_order(spec: RunFile, blocks: Sequence[str], cycle: int) -> list[str]:
    """The blocks (given in model order) in the order in which cycle number `cycle` visits them."""
    order = list(blocks)
    match spec.schedule.order:
        case "descending":
            order.reverse()
        case "random":
            random.Random(f"{spec.seed}:{cycle}").shuffle(order)  # noqa: S311 - an order, not a secret
        case "ascending":
            pass
    return order


def visits(spec: RunFile, blocks: Sequence[str], agents: Sequence[str], round: int, common: Collection[str] | None = None) -> list[Visit]:
    """The visits of round number `round`, counted from 0 over the whole run: the cycle's order, cut into pieces of `wave` blocks.

    `agents` are the participants in a fixed order. Block i (of the n-agent run, in model order) goes to

    fixed:      agent i mod n (the paper's: a client is responsible for a block);
    rotating:   in cycle c, agent (i + c mod t) mod n, so that every block sees every partition in time;
    first_come: to whoever asks first.

    t is n, or as many as the exposure budget allows (`exposure.team_size`; `common` are the blocks that everybody sees, by default
    those trained along). In a wave, see `_without_clashes`.
    """
    cycle, place = divmod(round, rounds_per_cycle(spec, blocks))
    wave = spec.schedule.wave
    piece = cycle_order(spec, blocks, cycle)[place * wave : (place + 1) * wave]
    meant_for: Sequence[str | None] = [None] * len(piece)
    if spec.schedule.agents != "first_come":
        meant_for = [
            agents[i] for i in _planned(spec, blocks, len(agents), cycle, piece, spec.schedule.always if common is None else common)
        ]
    train = spec.train
    return [
        Visit(
            round, cycle, block, agent,
            learning_rate=train.learning_rate * train.learning_rate_decay**cycle,
            always_learning_rate=(train.always_learning_rate or train.learning_rate) * train.always_learning_rate_decay**cycle,
            seed=visit_seed(spec.seed, round, block),
        )
        for block, agent in zip(piece, meant_for, strict=True)
    ]  # fmt: skip


def visit(spec: RunFile, blocks: Sequence[str], agents: Sequence[str], round: int) -> Visit:
    """The only visit of a round of the strict cycle (`wave: 1`)."""
    (only,) = visits(spec, blocks, agents, round)
    return only


def visit_seed(run_seed: int, round: int, block: str) -> int:
    """63 bits from (run, round, block): never from the attempt or the clock, so that a repeated visit repeats its result."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{round}:{block}".encode()).digest()[:8], "big") >> 1


def _planned(spec: RunFile, blocks: Sequence[str], agents: int, cycle: int, piece: Sequence[str], common: Collection[str]) -> list[int]:
    """Numbers of the agents for the blocks of one wave."""
    room = room_of(spec, common)
    numbered = [name for name in blocks if room is None or name not in common]
    team = team_size(len(numbered), agents, room)
    turn = cycle % team if spec.schedule.agents == "rotating" else 0
    number = {name: i for i, name in enumerate([*numbered, *(name for name in blocks if name not in numbered)])}
    teams = [[(number[block] + (turn + step) % team) % agents for step in range(team)] for block in piece]
    return _without_clashes(teams, agents)


def _without_clashes(teams: Sequence[Sequence[int]], agents: int) -> list[int]:
    """One of `agents` agents for each team, the first of the team by preference, and none for two while that can be avoided.

    Where two want the same, the earlier one in the wave gets it; the other takes the next free one of its team; if none is free,
    others move along (an augmenting path of a bipartite matching). What cannot be matched so (fewer agents than blocks, say) goes
    to agents that have one already, then two, and so on: they do it one after another. Nothing is drawn: the same every time.
    """
    chosen: dict[int, int] = {}
    holders: list[list[int]] = [[] for _ in range(agents)]

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
            if len(holders[teams[place][0]]) < most:
                take(place, teams[place][0])
        for place in left:
            if place not in chosen:
                place_one(place, most, set())
    return [chosen[place] for place in range(len(teams))]
