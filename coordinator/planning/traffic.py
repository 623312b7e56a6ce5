"""Simulates what agents will fetch and send: which versions each holds, and the cheapest way from there to what a visit needs.

The rules are those of services/shards.py (patches), agent/fetching.py (the cheapest way) and engine/apply.py (which patches are
made); sizes are known or estimated. Nobody fails, is away or runs out of disk.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedcybgd.coordinator.domain.compression import Plan
from fedcybgd.coordinator.domain.methods.registry import method_of, place_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.vocabulary import types_met
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, corrected, corrections, delta_bytes, shard_bytes, updated
from fedcybgd.shared.contract.adapters import ADAPTERS, factors_of
from fedcybgd.shared.contract.codec import DROPPED, EXACT, PRUNED, kind_of

PACKED = {EXACT: 0.848, "int8": 0.934, "int4": 0.901, PRUNED: 0.848}
"""Bytes of a shard in the lossless coding, relative to the shard. Measured: all layers of MiniLM and stories260K are within 0.01."""
DELTA = {"float32": 0.85, "bfloat16": 0.68, "int8": 0.95, "int4": 0.92}
"""Bytes of a delta in the lossless coding, relative to the delta: int8 measured in runs of both models, the others on normal noise."""
CODE_BITS = 7.9
"""A visit moves a weight by about learning rate × √steps, and a weight's size, so the step of its int8 code, goes with 1 / √hidden.
The entropy of the difference of two codes is then CODE_BITS + log2(learning rate × √(steps × hidden)) bits. Measured: 7.86 for MiniLM
(4e-4, 20 steps), 8.0 for stories260K (3e-3, 30 steps; one bit less at half the rate)."""
DIFFERENCE = {"int8": 1.0, "int4": 0.62, PRUNED: 1.9}
"""The same in other codecs, relative to int8 (as shares of the shard). Measured on a layer of MiniLM with normal noise added."""
SHORT_ROWS = 0.25
"""Mean length of rows of a classification, relative to the longest."""
USUAL_ROWS = 1000
"""Rows of an agent, where nobody says."""
MAX_STEPS = 4
"""Patches in a row, as in services/shards.py."""
NOTHING = frozenset[str]()
"""What a visit trains of a block that it corrects."""
Held = tuple[str, int, str]
"""block, version, codec; or seat, round and "delta" """
_Part = tuple[str, Held]
"""what is fetched in one: a shard that is "whole", a "step", or a "leap" over several"""


@dataclass(frozen=True)
class Movement:
    """How far the visits of a run move weights, for the size of what says so."""

    delta_codec: str
    learning_rate: float
    steps: float
    hidden: int
    vocabulary_share: float

    @classmethod
    def of(cls, spec: RunFile, model: ModelShape, rows: int | None) -> "Movement":
        """For a run file; `rows` are those of an agent, if somebody knows them."""
        train, length = spec.train, spec.task.max_length * (SHORT_ROWS if spec.task.is_classification else 1)
        steps = train.steps or max(1.0, (train.epochs or 1) * (rows or USUAL_ROWS) / train.batch_size)
        types = types_met(steps * train.batch_size * length, model.vocabulary)
        met = 1.0 if spec.task.kind == "image-classification" else types / max(1, model.vocabulary)
        return cls(spec.delta.codec, train.learning_rate, steps, model.hidden, met)

    def delta(self, blocks: Iterable[BlockShape]) -> int:
        """Bytes of one packed delta over these blocks."""
        return round(sum(DELTA[self.delta_codec] * self._share(b) * delta_bytes([b], self.delta_codec) for b in blocks))

    def difference(self, block: BlockShape, codec: str, factor: float, model: ModelShape) -> int:
        """Bytes of the patch to the next version of a frozen block; `factor` is the learning rate's decay so far, and goes with the root of the
        number of changes where one patch is for several.
        """
        bits = CODE_BITS + math.log2(self.learning_rate * factor * math.sqrt(self.steps * self.hidden))
        share = bits / 8 * DIFFERENCE[kind_of(codec)]
        return round(min(0.95, max(0.1, share)) * self._share(block) * shard_bytes(block, codec, model))

    def _share(self, block: BlockShape) -> float:
        return self.vocabulary_share if block.kind == "embeddings" else 1.0


@dataclass(frozen=True)
class Transfer:
    """One visit: who, which blocks, in which emulator, and the bytes that cross the wire for it."""

    cycle: int
    blocks: tuple[str, ...]
    """the visited ones"""
    agent: str
    plan: Plan
    down: int
    up: int
    fresh: int
    """of `down`, what nobody has fetched before: where all share a site cache, only that leaves the coordinator"""


@dataclass
class _Step:
    size: int
    made_of: Held | None
    """the delta that it is; None: a difference"""


@dataclass
class _State:
    blocks: dict[str, BlockShape]
    codecs: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    steps: dict[Held, dict[Held, _Step]] = field(default_factory=dict)
    """by the version that they lead to, and by the one that they start from"""
    changed: dict[str, list[int]] = field(default_factory=dict)
    """block → the rounds in which it changed"""
    held: dict[str, set[Held]] = field(default_factory=dict)
    left: set[_Part] = field(default_factory=set)
    """what somebody has fetched: whole, or as a step"""


def packed_bytes(block: BlockShape, codec: str, model: ModelShape) -> int:
    """Bytes that a whole shard takes on the wire."""
    if codec in block.sizes:
        return block.sizes[codec][1]
    return round(PACKED[kind_of(codec)] * shard_bytes(block, codec, model)) if codec != DROPPED else 0


def leaving(transfers: Iterable[Transfer], cycle: int) -> tuple[int, int]:
    """Bytes that all agents fetch in a cycle; and those that leave the coordinator for it where all of them share one site cache."""
    chosen = [(t.down, t.fresh) for t in transfers if t.cycle == cycle]
    return sum(down for down, _ in chosen), sum(fresh for _, fresh in chosen)


def simulate(
    spec: RunFile,
    model: ModelShape,
    blocks: Sequence[BlockShape],
    visited: Sequence[str],
    agents: Sequence[str],
    rounds: int,
    file_bytes: int,
    plan_for: Callable[[str, Sequence[BlockShape], Collection[str]], Plan | None],
    ahead: Plan,
    common: Collection[str] | None = None,
    rows: int | None = None,
) -> Iterator[Transfer]:
    """The visits of the first `rounds` rounds, from agents that hold nothing.

    `ahead` is the codec in which each block is made before the start, beside that in which those come that are trained.
    `plan_for` gives the emulator of an agent for blocks (at their versions) of which some are trained; None: it cannot do the
    visit, which then costs nobody anything. Who comes first is not known beforehand: such visits are dealt out in turn.
    """
    state = _State({b.name: b for b in blocks}, {(b.name, b.version): {ahead[b.name]} - {DROPPED} for b in blocks})
    for name in {*visited, *spec.schedule.always}:
        state.codecs[name, state.blocks[name].version].add(spec.compression.trained)
    changes = [Movement.of(spec.in_cycle(cycle), model, rows) for cycle in (0, 1)]
    turn, method = 0, method_of(spec)
    common = spec.schedule.always if common is None else common
    for number in range(rounds):
        trained_by: dict[str, list[tuple[str, frozenset[str]]]] = {}
        cycle, _ = place_of(spec, visited, number)
        change, seats = changes[min(cycle, 1)], 0
        for seat in method.seats(spec, visited, agents, number, common):
            agent, turn, seats = seat.agent or agents[turn % len(agents)], turn + 1, seats + 1
            trained = frozenset({*seat.blocks, *seat.along(spec.schedule.always)})
            now = list(state.blocks.values())
            plan = plan_for(agent, now, trained)
            if plan is None:
                continue
            held = state.held.setdefault(agent, set())
            files = 0 if held else file_bytes
            others = spec.compression.delta_patches
            fetched = dict[_Part, int]()  # a delta that is a step of several blocks is fetched once
            for block in now:
                if plan[block.name] != DROPPED:
                    fetched |= _fetch(state, held, block, plan[block.name], model, others)
            down = files + sum(fetched.values())
            fresh = files + sum(size for part, size in fetched.items() if part not in state.left)
            state.left.update(fetched)
            up = change.delta([*(b for b in now if b.name in trained), *corrections(spec, now, trained)])
            held.add((str(seat.number), number, "delta"))
            for name in trained:
                trained_by.setdefault(name, []).append((str(seat.number), trained))
            for block in corrected(spec, now, trained):
                trained_by.setdefault(block.name, []).append((str(seat.number), NOTHING))
            yield Transfer(seat.cycle, seat.blocks, agent, plan, down, up, fresh)
        if spec.adapters is not None and spec.adapters.combine == "exact" and len(trained_by.get(ADAPTERS, ())) > 1:
            factors = state.blocks[ADAPTERS].tensors
            folded = [b.name for b in state.blocks.values() if any(factors_of(name)[0] in factors for name in b.tensors)]
            trained_by |= dict.fromkeys(folded, trained_by[ADAPTERS])
        between = math.ceil(len(agents) / max(1, seats))
        _apply(spec, state, number, between, trained_by, change, spec.train.learning_rate_decay**cycle, model)


def _fetch(state: _State, held: set[Held], block: BlockShape, codec: str, model: ModelShape, others: bool) -> dict[_Part, int]:
    """What an agent that holds `held` fetches for the block, with the bytes of each; it holds the block afterwards.

    `others`: their deltas may be steps. The way is chosen for each block alone, as agents do.
    """
    wanted = (block.name, block.version, codec)
    state.codecs.setdefault((block.name, block.version), set()).add(codec)
    if wanted in held:
        return {}
    whole = packed_bytes(block, codec, model)
    best, path = min(whole, shard_bytes(block, codec, model)), [wanted]
    taken = {("whole", wanted): best}
    ways: dict[Held, tuple[int, list[Held], dict[_Part, int]]] = {wanted: (0, [wanted], {})}
    for target in (reached := [wanted]):
        cost, passed, steps = ways[target]
        for base, step in state.steps.get(target, {}).items() if len(passed) <= MAX_STEPS else ():
            if cost + step.size >= min(whole, ways[base][0] if base in ways else whole):
                continue
            if step.made_of is not None and step.made_of not in held and not others:
                continue
            paid = {("step" if base[1] == target[1] - 1 else "leap", step.made_of or target): step.size} if step.made_of not in held else {}
            ways[base] = cost + step.size, [*passed, base], steps | paid
            reached.append(base)
    if had := [way for version, way in ways.items() if version in held]:
        _, passed, steps = min(had, key=lambda way: way[0])
        if sum(steps.values()) < best:
            path, taken = passed, steps
    held.update(path)
    return taken


def _apply(
    spec: RunFile,
    state: _State,
    number: int,
    between: int,
    trained_by: Mapping[str, list[tuple[str, frozenset[str]]]],
    change: Movement,
    decay: float,
    model: ModelShape,
) -> None:
    """The next versions of the trained blocks, in the codecs of the present ones, with the steps to them.

    `between` rounds are from one visit of an agent to its next, or nearly twice as many: over what changed in them, one patch leads as well.
    """
    for name, trainers in trained_by.items():
        old = state.blocks[name]
        new = state.blocks[name] = updated(old)
        codecs = state.codecs[name, new.version] = set(state.codecs.get((name, old.version), set()))
        rounds = state.changed[name] = [*state.changed.get(name, ()), number]
        turn, most = (sum(before > number - window for before in rounds) for window in (between, 2 * between - 1))
        leaps = range(2, min(most, MAX_STEPS) + 1) if turn <= MAX_STEPS else ()
        for codec in codecs:
            made_of: Held | None = None
            if codec != EXACT:
                size = change.difference(new, codec, decay, model)
            elif len(trainers) == 1 and trainers[0][1] != NOTHING:
                (seat, trained), *_ = trainers
                sent = [*(state.blocks[n] for n in trained), *corrections(spec, list(state.blocks.values()), trained)]
                size, made_of = change.delta(sent), (seat, number, "delta")
            else:
                continue
            steps = state.steps[name, new.version, codec] = {}
            if size < packed_bytes(new, codec, model):
                steps[name, old.version, codec] = _Step(size, made_of)
            for over in leaps if codec != EXACT else ():
                steps[name, new.version - over, codec] = _Step(change.difference(new, codec, decay * math.sqrt(over), model), None)
