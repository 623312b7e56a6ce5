"""The anchor of a run: another run, which trains pooler and head alone and as often. What it reaches, the other layers need not have learned."""

from collections.abc import Collection, Sequence
from typing import Any

from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run_file import RunFile, checked, said
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.block_names import HEAD

POOLER = "pooler"
MOST_CYCLES = 10_000
KEPT = frozenset({
    "model", "task", "method", "whole", "train", "evaluate", "average_versions", "keep_best", "calibrate", "stop", "delta", "exposure", "admission", "agents", "lease_s",
    "seed",
})  # fmt: skip
"""Sections and fields that an anchor has of its run; what else a run file says is about other blocks than the head"""
FAITHFUL = "int8"
"""What frozen blocks are in where the run's own policy would thin them: a head learns from what all layers make of a row"""


class AnchorRefused(Invalid):
    """A run that has nothing beside its head, or no head that it trains."""

    code = "no_anchor"


def anchor_name(run: str) -> str:
    return f"{run[:95]}-head"


def head_only(spec: RunFile, visited: Sequence[str]) -> RunFile:
    """The run file of a run's anchor. `visited` are the blocks that the run visits.

    Whoever trains, trains as often, on as many rows, at the rates that the run has for its head: those fall within as many visits by as much. The same
    scores select its model. Where blocks are visited in waves, its visits come one after another. Raises `AnchorRefused`.
    """
    trained = {*visited, *spec.schedule.always}
    if HEAD not in trained:
        raise AnchorRefused(f"run {spec.name} trains no head of its own, so there is nothing that a head alone could reach")
    if trained <= {HEAD, POOLER}:
        raise AnchorRefused(f"run {spec.name} trains pooler and head alone: it is its own anchor")
    handed = spec.adapters is not None and spec.adapters.combine == "handed"
    times = len(visited) if spec.method == "block-cycle" else 1
    values = {name: value for name, value in said(spec).items() if name in KEPT}
    values["name"] = anchor_name(spec.name)
    values["schedule"] = _schedule(spec, trained, times)
    values["train"] = values.get("train", {}) | _rates(spec, times)
    if spec.method != "whole":
        policy = spec.compression.policy
        values["compression"] = {
            "policy": FAITHFUL if policy in ("hybrid", "auto") else policy, "calibration_rows": spec.compression.calibration_rows,
        }  # fmt: skip
    if spec.adapters is not None:
        values["method"] = "block-cycle" if handed else "whole"
        if not handed:
            averaging = said(spec)["adapters"]
            values["whole"] = {name: averaging[name] for name in ("fraction", "weights", "outer") if name in averaging}
            values["compression"]["policy"] = "none"
    if spec.evaluate is not None:
        values["evaluate"]["every"] = _every(spec, visited, times)
    return checked(values)


def _schedule(spec: RunFile, trained: Collection[str], times: int) -> dict[str, Any]:
    """`times`: as many visits one after another as the run has in a cycle."""
    schedule = spec.schedule
    if schedule.cycles * times > MOST_CYCLES:
        raise AnchorRefused(f"run {spec.name} has {schedule.cycles * times:,} visits; an anchor of more than {MOST_CYCLES:,} is not made")
    return {
        "cycles": schedule.cycles * times, "agents": "first_come" if schedule.agents == "first_come" else "rotating", "blocks": [HEAD],
        "always": [POOLER] if POOLER in trained else [], "reassign_after_s": schedule.reassign_after_s, "max_attempts": schedule.max_attempts,
        **({} if schedule.head_average is None else {"head_average": schedule.head_average}),
    }  # fmt: skip


def _rates(spec: RunFile, times: int) -> dict[str, float | None]:
    train, along = spec.train, HEAD in spec.schedule.always
    rate = (train.always_learning_rate or train.learning_rate) if along else train.learning_rate
    decay = (train.always_learning_rate_decay if along else train.learning_rate_decay) ** (1 / times)
    return {"learning_rate": rate, "learning_rate_decay": decay, "always_learning_rate": rate, "always_learning_rate_decay": decay}


def _every(spec: RunFile, visited: Sequence[str], times: int) -> str | int:
    """As many scores, after as many visits."""
    assert spec.evaluate is not None
    match spec.evaluate.every:
        case "cycle" if times > 1:
            return times
        case "round" if times > 1:
            return -(-times // method_of(spec).rounds_per_cycle(spec, visited))
        case int(number) if times > 1:
            return -(-number * times // method_of(spec).rounds_per_cycle(spec, visited))
        case every:
            return every
