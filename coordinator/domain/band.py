"""Whether a delta is in line with a run's own: how far deltas of such blocks go, and which way those of this block point."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from pydantic import BaseModel, ConfigDict

from fedcybgd.coordinator.domain import sketch
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.shared.contract.training import TrainSettings
from fedcybgd.shared.contract.words import MOST_STEPS

REMEMBERED = 64
"""Accepted deltas of a run that the next are compared with."""
ENOUGH, ENOUGH_DIRECTIONS = 4, 5
"""Deltas by which a usual norm, or a usual direction, is known."""
BEYOND_OPTIMIZER = 2.0
"""AdamW moves a number by about its learning rate in a step at the most, and by twice that in no visit."""
FASTEST = 1000.0
"""Steps of a second that an agent is believed: to look after the smallest model's step alone takes longer than a millisecond."""
DEVIATIONS = 6.0
SIGMA = 1.4826
"""of a normal distribution, in units of its median deviation"""
SAME, SAME_SIZE = 0.999, 1024
"""Cosine from which on two deltas of so many numbers are one, times a factor: no two visits come so close."""
USUAL, AGAINST, AWAY = 0.2, -0.4, 0.6
"""Deltas of a block have a direction in common if their cosines with the others' mean are that large; what points against it, and that far
away from what is usual, is none of them.
"""


class BlockDelta(BaseModel):
    """What is remembered of the delta of one block."""

    model_config = ConfigDict(frozen=True)
    norm: float
    base_norm: float
    """of the block as it was sent"""
    size: int
    """numbers that the delta has"""
    sketch: str
    reach: float = 0.0
    """norm that its steps at their learning rate could have at the most"""

    @property
    def relative(self) -> float:
        return self.norm / self.base_norm if self.base_norm else math.inf if self.norm else 0.0

    @property
    def share(self) -> float:
        """Of what was in reach."""
        return self.norm / self.reach if self.reach else math.inf if self.norm else 0.0


@dataclass(frozen=True)
class AcceptedDelta:
    """An accepted delta of a block."""

    block: str
    kind: str
    round: int
    delta: BlockDelta


def believed_steps(settings: TrainSettings, claimed: int, seconds: float) -> int:
    """Steps of a visit. Where a run counts epochs the agent says how many, and is believed what can be done in that time."""
    return settings.steps or max(1, min(claimed, MOST_STEPS, math.ceil(seconds * FASTEST)))


def reach(settings: TrainSettings, block: str, delta: BlockDelta, steps: int) -> float:
    """The norm that a visit of so many steps can give the delta of a block."""
    rate = next(group.learning_rate for group in settings.groups if block in group.blocks)
    return rate * steps * (math.sqrt(delta.size) + settings.weight_decay * delta.base_norm)


def out_of_band(block: str, kind: str, delta: BlockDelta, past: Sequence[AcceptedDelta], rules: AdmissionSection) -> str | None:
    """None, or the reason to reject it: `norm …` or `direction …`."""
    if rules.max_relative_norm is not None and rules.norm_band is not None:
        if delta.norm > BEYOND_OPTIMIZER * delta.reach:
            return f"norm: the delta of {block} has norm {delta.norm:.4g}; its steps at their learning rate come to {delta.reach:.4g} at the most"
        if (limit := _limit([p.delta for p in past if p.kind == kind], delta, rules.norm_band)) is not None:
            return f"norm: the delta of {block} has {delta.relative:.3g} times its block's norm, beyond the {limit:.3g} that this run's bear out"
        return _against(block, delta, [p for p in past if p.block == block])
    return None


def _limit(past: Sequence[BlockDelta], delta: BlockDelta, factor: float) -> float | None:
    """The limit that a delta is beyond: both of its block's norm and of what was in reach, for visits are of unlike length."""
    if len(past) < ENOUGH:
        return None
    limits = [_robust_limit([p.relative for p in past], factor), _robust_limit([p.share for p in past], factor)]
    beyond = delta.relative > limits[0] and delta.share > limits[1]
    return limits[0] if beyond else None


def _robust_limit(values: Sequence[float], factor: float) -> float:
    middle = median(values)
    if not math.isfinite(middle):
        return math.inf
    spread = SIGMA * median(abs(value - middle) for value in values)
    return max(factor * middle, middle + DEVIATIONS * spread)


def _against(block: str, delta: BlockDelta, past: Sequence[AcceptedDelta]) -> str | None:
    if (turned := next((p for p, cosine in _same(delta, past) if cosine < 0), None)) is not None:
        return f"direction: the delta of {block} is that of round {turned.round}, turned round"
    if len(past) < ENOUGH_DIRECTIONS or not delta.sketch:
        return None
    units = [sketch.unpacked(p.delta.sketch) for p in past]
    total = [sum(column) for column in zip(*units, strict=True)]
    usual = [sketch.cosine(unit, [t - u for t, u in zip(total, unit, strict=True)]) for unit in units]
    middle = median(usual)
    spread = SIGMA * median(abs(value - middle) for value in usual)
    found = sketch.cosine(sketch.unpacked(delta.sketch), total)
    if middle >= USUAL and found <= min(AGAINST, min(usual) - SIGMA * spread, middle - max(AWAY, DEVIATIONS * spread)):
        return f"direction: the delta of {block} points against this run's (cosine {found:.2f}, where {middle:.2f} is usual)"
    return None


def _same(delta: BlockDelta, past: Sequence[AcceptedDelta]) -> Iterator[tuple[AcceptedDelta, float]]:
    """Those of which it is a multiple, with the cosine."""
    if delta.size < SAME_SIZE or not delta.sketch:
        return
    mine = sketch.unpacked(delta.sketch)
    for other in past:
        if abs(cosine := sketch.cosine(mine, sketch.unpacked(other.delta.sketch))) >= SAME:
            yield other, cosine


def no_work(block: str, delta: BlockDelta, past: Sequence[AcceptedDelta]) -> str | None:
    """What tells that nothing was trained: no change, or a multiple of an earlier one. That may be chance, so it is only said."""
    if not delta.norm:
        return f"the delta of {block} changes nothing"
    earlier = next((p for p, _ in _same(delta, [p for p in past if p.block == block])), None)
    return f"the delta of {block} is a multiple of that of round {earlier.round}" if earlier is not None else None
