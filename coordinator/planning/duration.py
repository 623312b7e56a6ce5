"""How long visits take, and how long one may: from what it computes and moves, and from earlier visits of the same agent."""

from dataclasses import dataclass

from fedcybgd.coordinator.domain.progress import LEAST_LIFE_S, MOST_LIFE_S
from fedcybgd.coordinator.domain.run_file import RunFile

LEAST_PATIENCE_S, MOST_PATIENCE_S = 60.0, 1800.0
"""A visit may stand still for so long at the least, and at the most."""
FLOPS_OF_A_WEIGHT = 6
"""Operations for a weight and a token: two forward, four backward."""
SLOWEST = {"cpu": 5e9, "mps": 2e11, "cuda": 5e11}
"""Operations a second of a slow device of each kind: who is slower than that is measured at the first visit."""
DISK_BYTES_PER_S = 20e6
"""Of a slow disk: what is hashed, unpacked or mapped moves nothing that anybody sees."""
LINE_BYTES_PER_S = 50e3
"""Of a slow line, where the agent does not say."""
STEPS_STILL = 10
"""Steps of usual length, for which nothing need be heard"""
LIVES = 10
"""How much longer than its longest visit lately an agent may take"""


@dataclass(frozen=True)
class Work:
    """What a visit asks for."""

    parameters: int
    """of the emulator: those that are computed with"""
    tokens: int
    """of a step, at the most"""
    steps: int
    bytes: int
    """fetched and sent, at the most"""


@dataclass(frozen=True)
class Pace:
    """How an agent did lately."""

    step_s: float
    """of its slowest visit, on average"""
    visit_s: float
    """from lease to delta, of its longest visit"""


def planned_step_s(work: Work, device: str) -> float:
    """Seconds of a step on a slow device of a kind."""
    return FLOPS_OF_A_WEIGHT * work.parameters * work.tokens / SLOWEST.get(device, SLOWEST["cpu"])


def patience_s(work: Work, device: str, pace: Pace | None) -> float:
    """For how long a visit may show no progress: many steps as they were lately, or one as it is planned, and what goes on in silence."""
    step = STEPS_STILL * pace.step_s if pace is not None else planned_step_s(work, device)
    return min(MOST_PATIENCE_S, max(LEAST_PATIENCE_S, step + work.bytes / DISK_BYTES_PER_S))


def life_s(work: Work, device: str, bytes_per_s: int, pace: Pace | None) -> float:
    """How long an attempt may take as a whole, whatever it shows of progress."""
    if pace is not None:
        planned = LIVES * pace.visit_s
    else:
        planned = work.bytes / (bytes_per_s or LINE_BYTES_PER_S) + work.steps * planned_step_s(work, device)
    return min(MOST_LIFE_S, max(LEAST_LIFE_S, planned))


def visit_tokens(spec: RunFile, rows: int | None, each: int) -> tuple[float, float] | None:
    """Tokens of a visit in the first cycle, and of one in each of the others together, if all rows have `each`."""
    first, other = (_tokens_of(spec.in_cycle(cycle), rows, each) for cycle in (0, 1))
    return None if first is None or other is None else (first, other * (spec.schedule.cycles - 1))


def _tokens_of(spec: RunFile, rows: int | None, each: int) -> float | None:
    train = spec.train
    if train.steps is not None:
        return train.steps * train.batch_size * each
    return (train.epochs or 1.0) * rows * each if rows else None


def first_share(spec: RunFile, rows: int | None) -> float:
    """Of all training, what the first cycle has."""
    first, others = visit_tokens(spec, rows, 1) or (1.0, spec.schedule.cycles - 1.0)
    return first / (first + others)
