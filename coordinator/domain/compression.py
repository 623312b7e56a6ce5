"""Which block reaches an agent in which codec: the policies of the run file, and what is done about an unfaithful emulator.

A plan is block → codec. Codecs from the most faithful to the least: exact, int8, int4, pruned:N, dropped.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedcybgd.coordinator.domain.run_file import CompressionSection
from fedcybgd.coordinator.errors import CoordinatorError, Invalid
from fedcybgd.shared.contract.codec import DROPPED, EXACT, PRUNED, kind_of, percent_of

Plan = dict[str, str]
LADDER = (DROPPED, PRUNED, "int4", "int8", EXACT)
"""From what bends gradients most to what leaves them alone, as measured by benchmarks/fidelity.py."""
LAYER = "layer"
UNMEASURABLE = -math.inf
"""The cosine of a plan whose fidelity could not be measured: under every floor."""


class CompressionInvalid(Invalid):
    code = "compression_invalid"


class FidelityTooLow(CoordinatorError):
    """The emulator of a plan bends a block's gradient more than the run file allows, and no more faithful plan may be taken."""

    code = "fidelity_below_floor"
    status = 422


@dataclass(frozen=True)
class BlockFacts:
    """What policies have to know of a block."""

    name: str
    kind: str
    num_parameters: int
    version: int = 0
    """above 0: updated in this run"""
    influence: float | None = None
    """Block influence (ShortGPT, arXiv 2403.03853): small for layers that change little. Unknown ones are dropped last."""


@dataclass(frozen=True)
class AgentLimits:
    """What an agent declares; None: no limit."""

    memory_bytes: int | None = None
    download_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True)
class Costs:
    """What a plan costs an agent, in bytes: peak memory of training, download of a visit, and what lies on its disk for it."""

    memory: Callable[[Plan], int]
    download: Callable[[Plan], int]
    disk: Callable[[Plan], int] = lambda _: 0


@dataclass(frozen=True)
class DoesNotFit:
    """No plan of the policy is for this agent; the missing bytes are those of `plan`, the one that came closest."""

    plan: Plan
    reason: str
    missing_memory_bytes: int
    missing_download_bytes: int
    missing_disk_bytes: int = 0


def plan(
    settings: CompressionSection,
    blocks: Sequence[BlockFacts],
    trained: Collection[str],
    limits: AgentLimits | None = None,
    costs: Costs | None = None,
    fidelity: Mapping[str, float] | None = None,
) -> Plan | DoesNotFit:
    """The codec of every block, for an agent that trains `trained`, which come as the settings say. `blocks` in model order.

    `fidelity` has what was measured for this visit, by `plan_key`. A plan known to be under the floor is not returned, one
    that was never measured is: measure it, and ask again. Raises `FidelityTooLow` where the run file says so, and
    `CompressionInvalid` for settings out of range. Limits need `costs`.
    """
    check_compression(settings)
    known = fidelity or {}
    if settings.policy == "auto":
        return _auto(settings, blocks, trained, limits or AgentLimits(), costs, known)
    chosen = _fixed(settings, blocks, trained)
    while settings.floor is not None and (measured := known.get(plan_key(chosen))) is not None and measured < settings.floor:
        chosen = apply_floor(settings, chosen, measured)
    missing = _missing(chosen, limits or AgentLimits(), costs)
    return DoesNotFit(chosen, _reason(chosen, missing, limits), *missing) if any(missing) else chosen


def check_compression(settings: CompressionSection) -> None:
    """Raises `CompressionInvalid`: for settings that did not come through the run file's own validation."""
    if not 0 <= settings.drop_ratio <= 0.9:
        raise CompressionInvalid(f"drop_ratio must be between 0 and 0.9 (not {settings.drop_ratio})")
    if not 0.01 <= settings.prune_ratio <= 0.9:
        raise CompressionInvalid(f"prune_ratio must be between 0.01 and 0.9 (not {settings.prune_ratio})")
    if settings.floor is not None and not -1 <= settings.floor <= 1:
        raise CompressionInvalid(f"floor is a cosine, between -1 and 1 (not {settings.floor})")


def pruned_codec(ratio: float) -> str:
    return f"{PRUNED}:{min(90, max(1, round(ratio * 100)))}"


def apply_floor(settings: CompressionSection, chosen: Plan, measured: float) -> Plan:
    """`chosen` if `measured` reaches the floor, else the next more faithful plan: its worst blocks go up by one rung.

    Raises `FidelityTooLow` if the run file refuses such plans, or if nothing is left to improve.
    """
    if settings.floor is None or measured >= settings.floor:
        return chosen
    if measured == UNMEASURABLE:
        what = (
            f"the fidelity of the emulator {plan_key(chosen)} could not be measured, so it does not reach the floor of {settings.floor:g}"
        )
    else:
        what = f"the gradient in the emulator {plan_key(chosen)} has a cosine of {measured:.3f} to the real one, under the floor of {settings.floor:g}"
    detail = {"plan": plan_key(chosen), "cosine": None if measured == UNMEASURABLE else measured, "floor": settings.floor}
    if settings.below_floor == "refuse":
        raise FidelityTooLow(f"{what}; choose a more faithful policy, or a lower `compression.floor`", **detail)
    worst = min((_rung(codec) for codec in chosen.values()), default=len(LADDER) - 1)
    if LADDER[worst] == EXACT:
        raise FidelityTooLow(f"{what}, and nothing in it is compressed", **detail)
    better = LADDER[worst + 1]
    codec = pruned_codec(settings.prune_ratio) if better == PRUNED else better
    return {name: codec if _rung(old) == worst else old for name, old in chosen.items()}


def _cosine(measured: float) -> str:
    return "no fidelity that could be measured, instead" if measured == UNMEASURABLE else f"{measured:.3f}"


def plan_key(chosen: Plan) -> str:
    """A plan as a short text, the same for equal plans: `dropped:layers.0-2,int4:layers.3-5,int8:embeddings`; exact blocks are left out.

    The key of a plan that compresses nothing is `exact`.
    """
    by_codec: dict[str, list[str]] = {}
    for name, codec in chosen.items():
        if codec != EXACT:
            by_codec.setdefault(codec, []).append(name)
    order = sorted(by_codec, key=lambda codec: (_rung(codec), codec))
    return ",".join(f"{codec}:{'+'.join(_ranges(by_codec[codec]))}" for codec in order) or EXACT


def _fixed(settings: CompressionSection, blocks: Sequence[BlockFacts], trained: Collection[str]) -> Plan:
    frozen = [b for b in blocks if b.name not in trained]
    result = {b.name: settings.trained if b.name in trained else EXACT for b in blocks}
    match settings.policy:
        case "int8":
            result |= {b.name: "int8" for b in frozen}
        case "int4":
            result |= {b.name: "int4" if b.kind == LAYER else "int8" for b in frozen}
        case "hybrid":
            # arXiv 2406.11187: what was not updated yet is dropped up to a ratio, what was updated is thinned and never dropped.
            fresh = [b for b in frozen if b.kind == LAYER and b.version == 0]
            result |= {b.name: pruned_codec(settings.prune_ratio) for b in frozen if b.kind == LAYER and b.version > 0}
            result |= {b.name: DROPPED for b in _by_influence(fresh)[: _droppable(settings, fresh)]}
        case _:
            pass
    return result


def _auto(
    settings: CompressionSection,
    blocks: Sequence[BlockFacts],
    trained: Collection[str],
    limits: AgentLimits,
    costs: Costs | None,
    fidelity: Mapping[str, float],
) -> Plan | DoesNotFit:
    """The first plan of the ladder that fits. What comes further down is less faithful, so a plan under the floor ends the search."""
    closest: tuple[list[float], DoesNotFit] | None = None
    for candidate in auto_ladder(settings, blocks, trained):
        measured = fidelity.get(plan_key(candidate))
        if settings.floor is not None and measured is not None and measured < settings.floor:
            under = (
                f"; more compressed plans are under the fidelity floor: {plan_key(candidate)} has {_cosine(measured)} of {settings.floor:g}"
            )
            if closest is None:
                # Not even the first rung is faithful enough, and this agent may hold more: exact is all that is left.
                exact = {b.name: EXACT for b in blocks}
                missing = _missing(exact, limits, costs)
                return DoesNotFit(exact, _reason(exact, missing, limits) + under, *missing) if any(missing) else exact
            found = closest[1]
            return replace(found, reason=found.reason + under)
        missing = _missing(candidate, limits, costs)
        if not any(missing):
            return candidate
        allowed = (limits.memory_bytes, limits.download_bytes, limits.disk_bytes)
        rank = [short / (limit or 1) for short, limit in zip(missing, allowed, strict=True)]
        if closest is None or max(rank) < max(closest[0]):
            closest = rank, DoesNotFit(candidate, _reason(candidate, missing, limits), *missing)
    assert closest is not None, "the ladder has a first rung"
    return closest[1]


def auto_ladder(settings: CompressionSection, blocks: Sequence[BlockFacts], trained: Collection[str]) -> Iterator[Plan]:
    """Plans of falling fidelity and size: all int8; layers to int4, then pruned, then dropped, one after another, least influence first.

    Layers updated in this run are never dropped, and of the others at most `drop_ratio`. A step that would not make its block
    smaller (pruning a block that is int4 already, as a rule) is left out.
    """
    frozen = [b for b in blocks if b.name not in trained]
    current: Plan = {b.name: str(settings.trained) for b in blocks} | {b.name: "int8" for b in frozen}
    yield dict(current)
    layers = _by_influence([b for b in frozen if b.kind == LAYER])
    fresh = [b for b in layers if b.version == 0]
    steps = [(b, "int4") for b in layers] + [(b, pruned_codec(settings.prune_ratio)) for b in layers]
    steps += [(b, DROPPED) for b in fresh[: _droppable(settings, fresh)]]
    for block, codec in steps:
        if codec == DROPPED or _bytes_a_value(codec) < _bytes_a_value(current[block.name]):
            current[block.name] = codec
            yield dict(current)


def _bytes_a_value(codec: str) -> float:
    """About what a float32 weight takes, with a bfloat16 scale (and offset) for 64 of them."""
    found = {EXACT: 4.0, "int8": 1 + 2 / 64, "int4": 0.5 + 4 / 64}.get(codec)
    return 4 * (1 - percent_of(codec) / 100) if found is None else found


def _by_influence(blocks: Sequence[BlockFacts]) -> list[BlockFacts]:
    """Least influence first; equal ones in model order."""
    return sorted(blocks, key=lambda b: math.inf if b.influence is None or math.isnan(b.influence) else b.influence)


def _droppable(settings: CompressionSection, fresh: Sequence[BlockFacts]) -> int:
    # Rounded down from at most 0.9: never all of them. 0.29 * 100 is a little less than 29.
    return math.floor(settings.drop_ratio * len(fresh) + 1e-9)


def _missing(chosen: Plan, limits: AgentLimits, costs: Costs | None) -> tuple[int, int, int]:
    """Bytes of memory, of download and of disk that `chosen` needs beyond `limits`."""
    if costs is None:
        return 0, 0, 0

    def beyond(cost: Callable[[Plan], int], limit: int | None) -> int:
        return max(0, cost(chosen) - limit) if limit is not None else 0

    return beyond(costs.memory, limits.memory_bytes), beyond(costs.download, limits.download_bytes), beyond(costs.disk, limits.disk_bytes)


def _reason(chosen: Plan, missing: tuple[int, int, int], limits: AgentLimits | None) -> str:
    allowed = (limits.memory_bytes, limits.download_bytes, limits.disk_bytes) if limits else (0, 0, 0)
    parts = []
    for short, limit, what in zip(missing, allowed, ("of memory", "of download", "of disk (limits.disk_gb)"), strict=True):
        if short:
            parts.append(f"{_mb(short)} {what} are missing: {_mb(short + (limit or 0))} are needed, {_mb(limit or 0)} allowed")
    return f"{' and '.join(parts)} (with {plan_key(chosen)})"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 10_000_000 else f"{count / 1e6:.3g} MB"


def _rung(codec: str) -> int:
    return LADDER.index(kind_of(codec))


def _ranges(names: Sequence[str]) -> list[str]:
    """Blocks of adjacent layers together: layers.0, layers.1, layers.2-3 → layers.0-3."""
    result: list[str] = []
    first = last = -2
    for name in names:
        match = re.fullmatch(r"layers\.(\d+)(?:-(\d+))?", name)
        if match is None:
            result.append(name)
            first = last = -2
            continue
        begin, end = int(match[1]), int(match[2] or match[1])
        if begin == last + 1:
            result.pop()
        else:
            first = begin
        last = end
        result.append(f"layers.{first}" if first == last else f"layers.{first}-{last}")
    return result
