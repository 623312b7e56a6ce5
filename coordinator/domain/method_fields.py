"""Which fields of a run file mean nothing under its method: to say them is an error, for whoever says one expects something of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from fedcybgd.shared.contract.codec import EXACT

Field = tuple[str, str]
"""section, field"""
ALL_AT_ONCE = "under `method: whole` a round trains all blocks at once"
EXACT_MODEL = "under `method: whole` agents train in the exact model, and nothing is compressed"
ADAPTED = "under `method: adapters` every visit trains all adapters at once"
BESIDE_ALL = "under `method: adapters` all layers are there with all of their matrices, beside which the adapters are"
SECTIONS = {"whole": "whole", "adapters": "adapters", "corrections": "block-cycle"}
"""section → the method that it is of"""
FILLED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "whole": {"compression": {"policy": "none"}, "whole": {}},
    "adapters": {"schedule": {"blocks": ["adapters"]}, "adapters": {}},
}
"""method → section → what stands there where nothing is said"""
UNUSED: Mapping[str, Mapping[Field, str]] = {
    "whole": {
        ("schedule", "order"): ALL_AT_ONCE,
        ("schedule", "wave"): f"{ALL_AT_ONCE}; how many agents train is `whole.fraction`",
        ("schedule", "damping"): "under `method: whole` deltas are averaged, and their mean is taken as it is",
        ("schedule", "first_cycle"): ALL_AT_ONCE,
        ("compression", "policy"): f"{EXACT_MODEL}: leave it out, or say none",
        ("compression", "trained"): EXACT_MODEL,
        ("compression", "drop_ratio"): EXACT_MODEL,
        ("compression", "prune_ratio"): EXACT_MODEL,
        ("compression", "floor"): EXACT_MODEL,
        ("compression", "below_floor"): EXACT_MODEL,
    },
    "adapters": {
        ("schedule", "order"): ADAPTED,
        ("schedule", "blocks"): f"{ADAPTED}; what else is trained, each time, is `schedule.always`",
        ("schedule", "wave"): f"{ADAPTED}; how many agents train is `adapters.fraction`",
        ("schedule", "damping"): "under `method: adapters` deltas are averaged, and their mean is taken as it is",
        ("schedule", "first_cycle"): ADAPTED,
        ("schedule", "head_start"): f"{ADAPTED}, and whatever else is trained along",
        ("compression", "trained"): "under `method: adapters` what is trained comes exact: it is small",
        ("compression", "drop_ratio"): BESIDE_ALL,
        ("compression", "prune_ratio"): BESIDE_ALL,
    },
}
"""method → field → why no other value than the usual one has an effect"""
WITHOUT_WEIGHTS = ("trimmed_mean", "median")
"""Averages that go by the order of numbers, whatever each delta weighs."""


def filled(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run file as it is read, with what its method leaves no choice of."""
    added = {}
    for section, fields in FILLED.get(str(values.get("method")), {}).items():
        given = values.get(section)
        if given is None or isinstance(given, Mapping):
            added[section] = {**fields, **(given or {})}
    return {**values, **added}


def check(method: str, file: BaseModel) -> None:
    """Raises `ValidationError`, which names each field."""
    if found := list(misplaced(method, file)):
        details = [InitErrorDetails(type=PydanticCustomError("no_effect", "{why}", {"why": why}), loc=loc, input={}) for loc, why in found]
        raise ValidationError.from_exception_data("RunFile", details)


def misplaced(method: str, file: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each field that says something in vain, with the reason. `file` is a run file."""
    for name, owner in SECTIONS.items():
        section = getattr(file, name)
        if section is not None and owner != method:
            why = f"it is for `method: {owner}`, and this run has {method}"
            yield from (((name, field), why) for field in sorted(section.model_fields_set))
            if not section.model_fields_set:
                yield (name,), why
    for (name, field), why in UNUSED.get(method, {}).items():
        section = getattr(file, name)
        usual = FILLED[method].get(name, {}).get(field, type(section).model_fields[field].default)
        if getattr(section, field) != usual:
            yield (name, field), why
    if method == "block-cycle" and file.schedule.order == "importance" and not (file.evaluate and file.compression.calibration_rows):
        yield ("schedule", "order"), "importance is measured on held-out rows: give `evaluate`, and `compression.calibration_rows` above 0"
    if method == "block-cycle" and file.schedule.first_cycle is not None and file.schedule.cycles == 1:
        yield ("schedule", "first_cycle"), "with `cycles: 1` there is no other cycle: say it of the schedule itself, and of `train`"
    if method == "block-cycle" and file.compression.trained != EXACT:
        yield from _of_rounded(file)
    if method == "block-cycle" and file.corrections is not None:
        yield from _of_corrections(file)
    if method in ("whole", "adapters"):
        if file.schedule.agents == "fixed":
            why = (
                f"under `method: {method}` a round has all agents, or those whose turn it is (`rotating`), or who asks first (`first_come`)"
            )
            yield ("schedule", "agents"), why
        if method == "adapters" and file.compression.policy in ("hybrid", "auto"):
            yield ("compression", "policy"), f"{BESIDE_ALL}: say none, int8 or int4"
        if method == "adapters" and file.adapters.combine == "exact":
            yield from _of_exact(file)
        if method == "adapters" and file.adapters.combine == "handed":
            yield from _of_one_agent(file)
        elif getattr(file, method).weights == "rows" and (average := file.admission.average) in WITHOUT_WEIGHTS:
            yield ("admission", "average"), f"{average} goes by the order of numbers, and `{method}.weights` is rows: say `weights: equal`"


def _of_rounded(file: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    if file.compression.policy in ("none", "hybrid"):
        yield ("compression", "trained"), f"under `policy: {file.compression.policy}` blocks come exact that are not trained: say exact"
    if file.exposure.max_exact_blocks is not None:
        yield (
            ("exposure", "max_exact_blocks"),
            "under `compression.trained: int8` nobody gets a block exact, so that there is nothing to bound",
        )


def _of_corrections(file: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    if file.compression.policy in ("hybrid", "auto"):
        yield (
            ("compression", "policy"),
            "`corrections` are beside the matrices of whole layers, none dropped or pruned: say none, int8 or int4",
        )
    if file.admission.average != "mean":
        yield ("admission", "average"), "the `corrections` of a round become one as their mean: say mean"


def _of_one_agent(file: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    why = "under `combine: handed` a round has one agent, whose adapters are taken as they are"
    for name, fields in (("adapters", ("fraction", "weights", "outer")), ("admission", ("average",)), ("schedule", ("wave_deadline_s",))):
        section = getattr(file, name)
        yield from (((name, field), why) for field in fields if getattr(section, field) != type(section).model_fields[field].default)


def _of_exact(file: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    exact = "under `combine: exact` what agents trained becomes one as their mean"
    if file.adapters.outer != type(file.adapters).model_fields["outer"].default:
        yield ("adapters", "outer"), f"{exact}, and not as a step"
    if file.admission.average != "mean":
        yield ("admission", "average"), exact
    if layers := [name for name in file.schedule.always if name.startswith("layers")]:
        yield (
            ("schedule", "always"),
            f"under `combine: exact` the matrices of {', '.join(layers)} take up what the mean of adapters leaves out",
        )
