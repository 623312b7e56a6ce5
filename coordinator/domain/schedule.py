"""The order of visits: which block is trained in which round, by whom, at which learning rate, from which seed."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.domain.run_file import RunFile


@dataclass(frozen=True)
class Visit:
    """What one round is about."""

    round: int
    cycle: int
    block: str
    agent: str | None
    """The agent that it is meant for; None: whoever comes first."""
    learning_rate: float
    always_learning_rate: float
    seed: int


def rounds_in(spec: RunFile, blocks: Sequence[str]) -> int:
    return spec.schedule.cycles * len(blocks)


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


def visit(spec: RunFile, blocks: Sequence[str], agents: Sequence[str], round: int) -> Visit:
    """The visit of round number `round`, counted from 0 over the whole run. `agents` are the participants in a fixed order.

    fixed:    block i always goes to agent i mod n (the paper's: a client is responsible for a block);
    rotating: in cycle c it goes to agent (i + c) mod n, so that every block sees every partition in time;
    first_come: to whoever asks first.
    """
    cycle, place = divmod(round, len(blocks))
    block = cycle_order(spec, blocks, cycle)[place]
    index = list(blocks).index(block)
    agent: str | None = None
    match spec.schedule.agents:
        case "fixed":
            agent = agents[index % len(agents)]
        case "rotating":
            agent = agents[(index + cycle) % len(agents)]
        case "first_come":
            pass
    train = spec.train
    return Visit(
        round, cycle, block, agent,
        learning_rate=train.learning_rate * train.learning_rate_decay**cycle,
        always_learning_rate=(train.always_learning_rate or train.learning_rate) * train.always_learning_rate_decay**cycle,
        seed=visit_seed(spec.seed, round, block),
    )  # fmt: skip


def visit_seed(run_seed: int, round: int, block: str) -> int:
    """63 bits from (run, round, block): never from the attempt or the clock, so that a repeated visit repeats its result."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{round}:{block}".encode()).digest()[:8], "big") >> 1
