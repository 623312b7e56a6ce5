"""Whether a delta is in line with a run's own: how far deltas of such blocks go, and which way those of this block point."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from fedcybgd.coordinator.domain import sketch
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.shared.contract.block_names import HEAD, LONGEST_MEAN
from fedcybgd.shared.contract.training import TrainSettings
from fedcybgd.shared.contract.words import MOST_STEPS

REMEMBERED = 64
"""Accepted deltas of a run that the next are compared with."""
ENOUGH, ENOUGH_DIRECTIONS = 4, 5
"""Deltas by which a usual norm, or a usual direction, is known."""
MANY = 8
"""Of so many agents, or more, the majority of so many is enough to tell what is usual."""
NOTHING = 1e-3
"""Share of what was in reach under which a delta is as good as none: it tells nothing of how far such deltas go, nor where to."""
LITTLE = 0.05
"""Share of what was in reach that is never too far: so far a visit goes whose every step points anywhere, if it has 400 of them."""
BEYOND_OPTIMIZER = 2.0
"""AdamW moves a number by about its learning rate in a step at the most, and by twice that in no visit."""
FASTEST = 1000.0
"""Steps of a second that an agent is believed: to look after the smallest model's step alone takes longer than a millisecond."""
AS_FAR_AGAIN = 2.0
"""Times what most agents' farthest went: whose rows are new to a model that has settled goes as far as all did at first."""
DEVIATIONS = 6.0
SIGMA = 1.4826
"""of a normal distribution, in units of its median deviation"""
SAME, SAME_SIZE = 0.999, 1024
"""Cosine from which on two deltas of so many numbers are one, times a factor: no two visits come so close."""
USUAL, AGAINST, AWAY = 0.2, -0.4, 0.6
"""Deltas of a block have a direction in common if their cosines with the others' mean are that large; what points against it, that far
away from what is usual, and goes as far as is usual, is none of them: who has gone too far comes back by smaller steps.
"""
WIDE = 10_000
"""Numbers of a block in which honest deltas do not point against each other. Those of a small head for two labels lie on a line."""


class BlockDelta(BaseModel):
    """What is remembered of the delta of one block."""

    model_config = ConfigDict(frozen=True)
    norm: float
    base_norm: float
    """of the block as it was sent"""
    size: int
    """numbers that the delta has"""
    sketch: str
    correction: bool = False
    """it is what a visit of other blocks has corrected: such deltas are compared with each other alone"""
    reach: float = 0.0
    """norm that its steps at their learning rate could have at the most"""
    moved: list[int] | None = None
    """of a classifier's head: the labels whose rows the delta moves; None: nobody asked"""

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
    agent: str
    delta: BlockDelta

    @cached_property
    def direction(self) -> list[float]:
        return sketch.unpacked(self.delta.sketch)


class AcceptedDeltas:
    """What a run has accepted, newest first, as a delta of `agent`, one of the `among` agents that take part, is compared with it.

    Each is looked at once, however many blocks the delta is of: with corrections that is as many as the model has.
    """

    def __init__(self, past: Iterable[AcceptedDelta], agent: str, among: int) -> None:
        self._of_block: dict[str, list[AcceptedDelta]] = defaultdict(list)
        self._of_kind: dict[str, list[AcceptedDelta]] = defaultdict(list)
        for p in past:
            self._of_block[p.block].append(p)
            self._of_kind[p.kind].append(p)
        self._agent, self._among = agent, among
        self._pools: dict[str, _Pool] = {}

    def of_block(self, block: str) -> Sequence[AcceptedDelta]:
        return self._of_block.get(block, ())

    def usual_of_block(self, block: str) -> "_Pool":
        return _pool(self.of_block(block), self._agent, self._among)

    def usual_of_kind(self, kind: str) -> "_Pool":
        if kind not in self._pools:
            self._pools[kind] = _pool(self._of_kind.get(kind, ()), self._agent, self._among)
        return self._pools[kind]


class BandResult(NamedTuple):
    """What there is against a delta."""

    reason: str
    """to reject it: `norm …` or `direction …`"""
    blamed: bool
    """whether its agent is to blame: no visit does that, or most agents of the run have shown what is usual"""


def believed_steps(settings: TrainSettings, claimed: int, seconds: float) -> int:
    """Steps of a visit. Where a run counts epochs the agent says how many, and is believed what can be done in that time."""
    return settings.steps or max(1, min(claimed, MOST_STEPS, math.ceil(seconds * FASTEST)))


def reach(settings: TrainSettings, block: str, delta: BlockDelta, steps: int) -> float:
    """The norm that a visit of so many steps can give the delta of a block."""
    rate = next(group.learning_rate for group in settings.groups if block in group.blocks)
    means = LONGEST_MEAN * math.sqrt(settings.num_labels or 0) if block == HEAD and settings.head_start == "class_means" else 0.0
    return rate * steps * (math.sqrt(delta.size) + settings.weight_decay * delta.base_norm) + means


def reach_of_corrections(settings: TrainSettings, shapes: Iterable[Sequence[int]], steps: int) -> float:
    """The same of the corrections of a block: one factor begins at zero, and the other within what is drawn, 1 / √inputs at the most.

    `shapes` are those of the matrices. Which of the two sides are the inputs is not known here: the shorter is the larger bound.
    As above an optimizer may go twice as far.
    """
    said = settings.corrections
    assert said is not None
    moved = said.learning_rate * steps
    squares = 0.0
    for rows, columns in shapes:
        begun = 1 / math.sqrt(min(rows, columns))
        entry = said.scale * said.rank * moved * (begun + 2 * moved)
        squares += rows * columns * entry**2
    return math.sqrt(squares)


def out_of_band(block: str, kind: str, delta: BlockDelta, past: AcceptedDeltas, rules: AdmissionSection) -> BandResult | None:
    """What there is against the delta of a block."""
    if rules.max_relative_norm is None or rules.norm_band is None:
        return None
    if delta.norm > BEYOND_OPTIMIZER * delta.reach:
        far = f"the delta of {block} has norm {delta.norm:.4g}; its steps at their learning rate come to {delta.reach:.4g} at the most"
        return BandResult(f"norm: {far}", blamed=True)
    if (turned := next((p for p, cosine in _same(delta, past.of_block(block)) if cosine < 0), None)) is not None:
        return BandResult(f"direction: the delta of {block} is that of round {turned.round}, turned round", blamed=True)
    of_kind = past.usual_of_kind(kind)
    if (limit := _limit(of_kind, delta, rules.norm_band)) is not None:
        far = f"{delta.relative:.3g} times its block's norm, beyond the {limit:.3g} that {of_kind.whose} bear out"
        return BandResult(f"norm: the delta of {block} has {far}", of_kind.blamed)
    of_block = past.usual_of_block(block)
    if (against := _against(of_block, delta)) is not None:
        found, usual = against
        return BandResult(
            f"direction: the delta of {block} points against {of_block.whose} (cosine {found:.2f}, where {usual:.2f} is usual)",
            of_block.blamed,
        )
    return None


@dataclass(frozen=True)
class _Pool:
    """Deltas that tell what is usual. Each agent counts once, however many it handed in."""

    deltas: dict[str, list[AcceptedDelta]]
    """by agent"""
    rank: int
    """agents whose values lie beyond the one that counts: half of those that take part, so that no minority narrows a band"""
    whose: str

    @property
    def blamed(self) -> bool:
        return len(self.deltas) > 1

    @cached_property
    def number(self) -> int:
        return sum(len(mine) for mine in self.deltas.values())

    @cached_property
    def relative(self) -> "_Usual":
        return self._usual(lambda delta: delta.relative)

    @cached_property
    def share(self) -> "_Usual":
        return self._usual(lambda delta: delta.share)

    def _usual(self, value: Callable[[BlockDelta], float]) -> "_Usual":
        values = {agent: [value(p.delta) for p in mine] for agent, mine in self.deltas.items()}
        middle = self.upper(values)
        if not math.isfinite(middle):
            return _Usual(math.inf, math.inf)
        spread = SIGMA * self.upper({agent: [abs(one - middle) for one in mine] for agent, mine in values.items()})
        farthest = self.upper({agent: [max(mine)] for agent, mine in values.items()})
        return _Usual(middle, max(middle + DEVIATIONS * spread, AS_FAR_AGAIN * farthest))

    def upper(self, values: Mapping[str, Sequence[float]]) -> float:
        """The upper median of the agents' own medians; those of whom nothing is known count as higher."""
        return sorted(median(mine) for mine in values.values())[self.rank]

    def lower(self, values: Mapping[str, Sequence[float]]) -> float:
        """The lower median; those of whom nothing is known count as lower."""
        return sorted((median(mine) for mine in values.values()), reverse=True)[self.rank]


class _Usual(NamedTuple):
    """How far the deltas of a pool go."""

    middle: float
    farthest: float
    """what spread and the farthest of them allow, whatever the band's factor"""

    def limit(self, factor: float) -> float:
        return max(factor * self.middle, self.farthest)


def _pool(past: Iterable[AcceptedDelta], agent: str, among: int) -> _Pool:
    """Those of all that tell something, where most of the agents have handed some in; else the agent's own, which nobody else has made."""
    by_agent: dict[str, list[AcceptedDelta]] = {}
    for p in past:
        if p.delta.share >= NOTHING:
            by_agent.setdefault(p.agent, []).append(p)
    rank = max(len(by_agent), min(among, MANY)) // 2
    if len(by_agent) > rank:
        return _Pool(by_agent, rank, "this run's")
    return _Pool({agent: by_agent[agent]} if agent in by_agent else {}, 0, "its agent's")


def _limit(pool: _Pool, delta: BlockDelta, factor: float) -> float | None:
    """The limit that a delta is beyond: both of its block's norm and of what was in reach, for visits are of unlike length."""
    if pool.number < ENOUGH or delta.share <= LITTLE:
        return None
    relative, share = pool.relative.limit(factor), pool.share.limit(factor)
    return relative if delta.relative > relative and delta.share > share else None


def _against(pool: _Pool, delta: BlockDelta) -> tuple[float, float] | None:
    """Cosine of a delta that points against the others, and the usual one."""
    if pool.number < ENOUGH_DIRECTIONS or not delta.sketch or delta.size < WIDE:
        return None
    if delta.norm < pool.upper({agent: [p.delta.norm for p in mine] for agent, mine in pool.deltas.items()}):
        return None
    units = {agent: [p.direction for p in mine] for agent, mine in pool.deltas.items()}
    parts = {agent: [[u / len(mine) for u in unit] for unit in mine] for agent, mine in units.items()}
    total = [sum(column) for column in zip(*(part for mine in parts.values() for part in mine), strict=True)]
    if (found := sketch.cosine(sketch.unpacked(delta.sketch), total)) > AGAINST:  # as most do: the others' own cosines do not matter
        return None
    usual = {
        agent: [
            sketch.cosine(unit, [t - p for t, p in zip(total, part, strict=True)]) for unit, part in zip(mine, parts[agent], strict=True)
        ]
        for agent, mine in units.items()
    }
    middle, least = pool.lower(usual), min(min(mine) for mine in usual.values())
    spread = SIGMA * pool.upper({agent: [abs(value - middle) for value in mine] for agent, mine in usual.items()})
    beyond = found <= min(least - SIGMA * spread, middle - max(AWAY, DEVIATIONS * spread))
    return (found, middle) if middle >= USUAL and beyond else None


def _same(delta: BlockDelta, past: Sequence[AcceptedDelta]) -> Iterator[tuple[AcceptedDelta, float]]:
    """Those of which it is a multiple, with the cosine."""
    if delta.size < SAME_SIZE or not delta.sketch:
        return
    mine = sketch.unpacked(delta.sketch)
    for other in past:
        if abs(cosine := sketch.cosine(mine, other.direction)) >= SAME:
            yield other, cosine


def no_work(block: str, delta: BlockDelta, past: AcceptedDeltas) -> str | None:
    """What tells that nothing was trained: no change, or a multiple of an earlier one. That may be chance, so it is only said."""
    if not delta.norm:
        return f"the delta of {block} changes nothing"
    earlier = next((p for p, _ in _same(delta, past.of_block(block))), None)
    return f"the delta of {block} is a multiple of that of round {earlier.round}" if earlier is not None else None
