"""What a run file says of adapters: what they are where nothing is said, and what has no effect on them."""

import pytest

from fedcybgd.coordinator.domain.run_file import RunFile, parse_run_file
from tests.unit.test_run_file import WHOLE, problems

ADAPTERS = "name: r\nmodel: m\ntask: {kind: causal-lm}\nmethod: adapters\n"


def test_adapters_are_what_is_visited_and_have_a_section_where_nothing_is_said() -> None:
    run = parse_run_file(ADAPTERS)
    assert (run.schedule.blocks, run.compression.policy) == (["adapters"], "int8")
    assert run.adapters is not None
    assert (run.adapters.matrices, run.adapters.rank, run.adapters.alpha, run.adapters.combine) == (["linear"], 8, 16.0, "mean")
    assert RunFile.model_validate(run.model_dump(mode="json")) == run, "what the coordinator keeps is the same run file"
    kept = parse_run_file(ADAPTERS + "compression: {policy: int4}\nschedule: {cycles: 3, always: [head], agents: first_come}\n")
    assert (kept.compression.policy, kept.schedule.blocks, kept.schedule.always) == ("int4", ["adapters"], ["head"])


HANDED = "adapters: {combine: handed}\n"


@pytest.mark.parametrize(
    ("lines", "line", "field", "says"),
    [
        ("schedule: {order: random}", 5, "schedule.order", "all adapters at once"), ("schedule: {wave: 2}", 5, "schedule.wave", "adapters.fraction"),
        ("schedule: {blocks: [layers]}", 5, "schedule.blocks", "schedule.always"), ("schedule: {damping: 0.5}", 5, "schedule.damping", "mean"),
        ("schedule: {agents: fixed}", 5, "schedule.agents", "first_come"), ("compression: {policy: hybrid}", 5, "compression.policy", "int8 or int4"),
        ("compression: {policy: auto}", 5, "compression.policy", "int8 or int4"), ("compression: {drop_ratio: 0.1}", 5, "compression.drop_ratio", "all layers"),
        ("compression: {trained: int8}", 5, "compression.trained", "exact"),
        ("compression: {prune_ratio: 0.5}", 5, "compression.prune_ratio", "all layers"), ("admission: {average: median}", 5, "admission.average", "weights: equal"),
        ("adapters: {combine: handed, fraction: 0.5}", 5, "adapters.fraction", "one agent"),
        ("adapters: {combine: handed, weights: equal}", 5, "adapters.weights", "one agent"),
        ("adapters: {combine: handed, outer: {momentum: 0.5}}", 5, "adapters.outer", "one agent"),
        ("adapters: {combine: exact, outer: {momentum: 0.5}}", 5, "adapters.outer", "not as a step"),
        ("adapters: {combine: exact, weights: equal}\nadmission: {average: median}", 6, "admission.average", "their mean"),
        ("adapters: {combine: exact}\nschedule: {always: [layers.0]}", 6, "schedule.always", "layers.0 take up"),
        (HANDED + "admission: {average: median}", 6, "admission.average", "one agent"),
        (HANDED + "schedule: {wave_deadline_s: 5}", 6, "schedule.wave_deadline_s", "one agent"),
    ],
)  # fmt: skip
def test_what_has_no_effect_on_adapters_is_refused(lines: str, line: int, field: str, says: str) -> None:
    [(where, named, message)] = problems(ADAPTERS + lines + "\n")
    assert (where, named, says in message) == (line, field, True), message


def test_what_belongs_to_adapters_is_refused_elsewhere() -> None:
    found = problems(WHOLE + "adapters:\n  rank: 4\n  combine: handed\n")
    assert [(line, field) for line, field, _ in found] == [(6, "adapters.rank"), (7, "adapters.combine")]
    assert all("`method: adapters`" in message and "this run has whole" in message for *_, message in found)
    assert [field for _, field, _ in problems(ADAPTERS + "whole: {fraction: 0.5}\n")] == ["whole.fraction"]
