"""A run file is read whole or refused, with the field and the line of everything that is wrong."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, parse_run_file

GOOD = """\
name: banking
model: minilm
method: block-cycle
whole: null
adapters: null
corrections: null
task:
  kind: text-classification
  labels: [card, loan, "pin"]
  max_length: 48
schedule:
  cycles: 4
  order: random
  agents: fixed
  blocks:
    - layers.2-5
    - head
  always: [head]
  layers_per_block: 2
  reassign_after_s: 10
  wave: 2
  damping: 0.5
  first_cycle: {wave: 4, damping: 0.3, steps: 5, epochs: null}
  head_average: mean
  head_start: class_means
  wave_deadline_s: 60
  max_attempts: 3
train:
  epochs: 0.5
  batch_size: 32
  learning_rate: 1.0e-4
  learning_rate_decay: 0.9
  always_learning_rate: 0.001
  always_learning_rate_decay: 0.5
  warmup_steps: 0
  weight_decay: 0.01
  max_grad_norm: null
  precision: bfloat16
  optimizer: adamw-8bit
  label_skew: fedlc
compression:
  policy: hybrid
  trained: exact
  drop_ratio: 0.4
  prune_ratio: 0.3
  floor: 0.8
  below_floor: refuse
  delta_patches: true
  calibration_rows: 32
delta:
  codec: int4
  error_feedback: true
exposure:
  max_exact_blocks: 3
evaluate:
  held_out: test.csv
  columns: {text: question}
  every: 3
  format: csv
  separator: ";"
  encoding: cp1252
  quotes: true
  first_label: 1
average_versions:
  last: 0.5
  keep: better
keep_best: true
calibrate: true
stop:
  patience: 3
admission:
  max_relative_norm: null
  norm_band: 3.0
  gate: enforce
  average: median
agents: [ann, bob]
lease_s: 30
seed: 7
"""
SMALLEST = "name: r\nmodel: m\ntask: {kind: causal-lm}\n"


def problems(text: str) -> list[tuple[int, str, str]]:
    """What is wrong with a run file: (line, field, message); checks that the message says the same."""
    with pytest.raises(RunFileInvalid) as refused:
        parse_run_file(text, "my.yaml")
    error = refused.value
    assert (error.code, error.status) == ("run_file_invalid", 422)
    found = [(p["line"], p["field"], p["message"]) for p in error.detail["problems"]]
    assert error.message == "\n".join(f"my.yaml line {line}: {field}: {message}" for line, field, message in found)
    return found


def test_a_good_file_is_read_whole() -> None:
    run = parse_run_file(GOOD)
    good = yaml.safe_load(GOOD)
    assert run.model_dump(exclude={"evaluate": {"digest"}}) == good | {"train": good["train"] | {"steps": None}}
    assert run.task.num_labels == 3
    assert run.task.label_names == ["card", "loan", "pin"]


def test_three_fields_are_enough() -> None:
    run = parse_run_file(SMALLEST)
    found = (run.schedule.cycles, run.schedule.order, run.schedule.blocks, run.agents, run.evaluate)
    assert found == (1, "ascending", ["all"], "all", None)
    assert (run.train.steps, run.train.epochs) == (None, None)


def test_what_the_coordinator_keeps_is_the_same_run_file() -> None:
    run = parse_run_file(GOOD)
    assert RunFile.model_validate(run.model_dump(mode="json")) == run


def line_of(needle: str) -> int:
    return next(number for number, line in enumerate(GOOD.splitlines(), 1) if needle in line)


def changed(needle: str, line: str) -> str:
    lines = GOOD.splitlines()
    lines[line_of(needle) - 1] = line
    return "\n".join(lines) + "\n"


# One wrong value for every field: what replaces which line, and the field that the error must name.
WRONG = [
    ("name:", "name: has spaces", "name"),
    ("name:", "name: ''", "name"),
    ("model:", "model: ../../etc/passwd", "model"),
    ("method:", "method: has spaces", "method"),
    ("adapters:", "adapters: {rank: 0}", "adapters.rank"),
    ("adapters:", "adapters: {alpha: 0}", "adapters.alpha"),
    ("adapters:", "adapters: {matrices: []}", "adapters.matrices"),
    ("adapters:", "adapters: {combine: sum}", "adapters.combine"),
    ("adapters:", "adapters: {fraction: 2}", "adapters.fraction"),
    ("adapters:", "adapters: {weights: loss}", "adapters.weights"),
    ("adapters:", "adapters: {outer: {learning_rate: 0}}", "adapters.outer.learning_rate"),
    ("adapters:", "adapters: {outer: {momentum: 1}}", "adapters.outer.momentum"),
    ("adapters:", "adapters: {outer: {nesterov: often}}", "adapters.outer.nesterov"),
    ("corrections:", "corrections: {rank: 0}", "corrections.rank"),
    ("corrections:", "corrections: {alpha: .inf}", "corrections.alpha"),
    ("corrections:", "corrections: {layers: below}", "corrections.layers"),
    ("corrections:", "corrections: {matrices: []}", "corrections.matrices"),
    ("corrections:", "corrections: {learning_rate: 0}", "corrections.learning_rate"),
    ("whole:", "whole: {fraction: 0}", "whole.fraction"),
    ("whole:", "whole: {fraction: 1.1}", "whole.fraction"),
    ("whole:", "whole: {weights: loss}", "whole.weights"),
    ("whole:", "whole: {outer: {learning_rate: 0}}", "whole.outer.learning_rate"),
    ("whole:", "whole: {outer: {momentum: 1}}", "whole.outer.momentum"),
    ("whole:", "whole: {outer: {nesterov: often}}", "whole.outer.nesterov"),
    ("  kind:", "  kind: translation", "task.kind"),
    ("  max_length:", "  max_length: 1", "task.max_length"),
    ("  max_length:", "  max_length: long", "task.max_length"),
    ("  cycles:", "  cycles: 0", "schedule.cycles"),
    ("  cycles:", "  cycles: 1.5", "schedule.cycles"),
    ("  order:", "  order: sideways", "schedule.order"),
    ("  agents: fixed", "  agents: nobody", "schedule.agents"),
    ("    - head", "    - {head: 1}", "schedule.blocks.1"),
    ("  always:", "  always: head", "schedule.always"),
    ("  always:", "  always: [head, 3]", "schedule.always.1"),
    ("  layers_per_block:", "  layers_per_block: 0", "schedule.layers_per_block"),
    ("  reassign_after_s:", "  reassign_after_s: -1", "schedule.reassign_after_s"),
    ("  max_attempts:", "  max_attempts: 0", "schedule.max_attempts"),
    ("  wave: ", "  wave: 0", "schedule.wave"),
    ("  damping:", "  damping: 0", "schedule.damping"),
    ("  damping:", "  damping: 1.5", "schedule.damping"),
    *(("  first_cycle:", f"  first_cycle: {{{n}: 0}}", f"schedule.first_cycle.{n}") for n in ("wave", "damping", "steps", "epochs")),
    ("  head_average:", "  head_average: median", "schedule.head_average"),
    ("  head_start:", "  head_start: zero", "schedule.head_start"),
    ("  wave_deadline_s:", "  wave_deadline_s: 0", "schedule.wave_deadline_s"),
    ("  epochs:", "  epochs: 0", "train.epochs"),
    ("  epochs:", "  steps: 0", "train.steps"),
    ("  epochs:", "  steps: 2.5", "train.steps"),
    ("  batch_size:", "  batch_size: 0", "train.batch_size"),
    ("  learning_rate:", "  learning_rate: -1", "train.learning_rate"),
    ("  learning_rate:", "  learning_rate: .nan", "train.learning_rate"),
    ("  learning_rate:", "  learning_rate: 2e", "train.learning_rate"),
    ("  learning_rate_decay:", "  learning_rate_decay: 1.1", "train.learning_rate_decay"),
    ("  always_learning_rate:", "  always_learning_rate: 10", "train.always_learning_rate"),
    ("  always_learning_rate_decay:", "  always_learning_rate_decay: 0", "train.always_learning_rate_decay"),
    ("  warmup_steps:", "  warmup_steps: -1", "train.warmup_steps"),
    ("  weight_decay:", "  weight_decay: 1", "train.weight_decay"),
    ("  max_grad_norm:", "  max_grad_norm: 0", "train.max_grad_norm"),
    ("  precision:", "  precision: float8", "train.precision"),
    ("  optimizer:", "  optimizer: sgd", "train.optimizer"),
    ("  policy:", "  policy: zip", "compression.policy"),
    ("  trained:", "  trained: int4", "compression.trained"),
    ("  drop_ratio:", "  drop_ratio: 0.95", "compression.drop_ratio"),
    ("  drop_ratio:", "  drop_ratio: -0.1", "compression.drop_ratio"),
    ("  prune_ratio:", "  prune_ratio: 0", "compression.prune_ratio"),
    ("  prune_ratio:", "  prune_ratio: 1", "compression.prune_ratio"),
    ("  floor:", "  floor: 1.1", "compression.floor"),
    ("  below_floor:", "  below_floor: shrug", "compression.below_floor"),
    ("  delta_patches:", "  delta_patches: perhaps", "compression.delta_patches"),
    ("  calibration_rows:", "  calibration_rows: -1", "compression.calibration_rows"),
    ("  codec: int4", "  codec: int2", "delta.codec"),
    ("  error_feedback:", "  error_feedback: perhaps", "delta.error_feedback"),
    ("  max_exact_blocks:", "  max_exact_blocks: 0", "exposure.max_exact_blocks"),
    ("  held_out:", "  held_out: ''", "evaluate.held_out"),
    ("  columns:", "  columns: {text: 3}", "evaluate.columns.text"),
    ("  columns:", "  columns: question", "evaluate.columns"),
    ("  every: 3", "  every: fortnight", "evaluate.every"),
    ("  every: 3", "  every: 0", "evaluate.every"),
    ("  every: 3", "  digest: abc", "evaluate.digest"),
    ("  format: csv", "  format: xlsx", "evaluate.format"),
    ("  separator:", "  separator: ', '", "evaluate.separator"),
    ("  encoding:", "  encoding: utf-9", "evaluate.encoding"),
    ("  quotes:", "  quotes: 2", "evaluate.quotes"),
    ("  first_label: 1", "  first_label: 2", "evaluate.first_label"),
    ("  max_relative_norm:", "  max_relative_norm: -2", "admission.max_relative_norm"),
    ("  gate:", "  gate: maybe", "admission.gate"),
    ("  average:", "  average: mode", "admission.average"),
    ("  norm_band:", "  norm_band: 1.0", "admission.norm_band"),
    ("  label_skew:", "  label_skew: prior", "train.label_skew"),
    ("  last: 0.5", "  last: 0", "average_versions.last"),
    ("  last: 0.5", "  last: 1.1", "average_versions.last"),
    ("  keep: better", "  keep: best", "average_versions.keep"),
    ("keep_best: true", "keep_best: perhaps", "keep_best"),
    ("calibrate: true", "calibrate: perhaps", "calibrate"),
    ("  patience: 3", "  patience: 0", "stop.patience"),
    ("agents: [ann, bob]", "agents: everybody", "agents"),
    ("agents: [ann, bob]", "agents: [ann, 'b b']", "agents.1"),
    ("agents: [ann, bob]", "agents: []", "agents"),
    ("lease_s:", "lease_s: 1", "lease_s"),
    ("seed:", "seed: -1", "seed"),
    ("seed:", "seed: 2147483648", "seed"),
]


@pytest.mark.parametrize(("needle", "line", "field"), WRONG, ids=[f"{w[2]}-{w[1].split(':', 1)[1].strip()}" for w in WRONG])
def test_a_wrong_value_is_named_with_its_field_and_line(needle: str, line: str, field: str) -> None:
    found = problems(changed(needle, line))
    fields = {f for _, f, _ in found}
    # Where one of several types would do, the list itself is named beside its wrong element.
    assert field in fields
    assert all(f == field or field.startswith(f"{f}.") for f in fields), found
    assert {n for n, _, _ in found} == {line_of(needle)}, found
    assert all(message for _, _, message in found)


def test_every_field_of_a_run_file_has_a_wrong_value_above() -> None:
    def leaves(section: Any, path: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
            inner = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
            yield from leaves(inner, f"{path}{name}.") if inner else [f"{path}{name}"]

    named = {re.sub(r"\.(\d+|text)$", "", field) for _, _, field in WRONG}
    assert set(leaves(RunFile, "")) == named | {"task.labels"}, "labels have tests of their own below"


@pytest.mark.parametrize(
    ("needle", "line", "field"),
    [
        ("seed:", "sead: 7", "sead"),
        ("  cycles:", "  cycels: 4", "schedule.cycels"),
        ("  every: 3", "  each: 3", "evaluate.each"),
        ("  kind:", "  kind: text-classification\n  colour: red", "task.colour"),
    ],
)
def test_an_unknown_field_is_named(needle: str, line: str, field: str) -> None:
    offset = line.count("\n")
    assert problems(changed(needle, line)) == [(line_of(needle) + offset, field, "there is no such field")]


def test_missing_fields_are_named_with_the_line_of_their_section() -> None:
    assert problems("model: m\n\ntask:\n  max_length: 8\n") == [
        (1, "name", "this field is missing"),
        (3, "task.kind", "this field is missing"),
    ]
    assert problems("name: r\nmodel: m\ntask: {kind: causal-lm}\nevaluate:\n  every: end\n") == [
        (4, "evaluate.held_out", "this field is missing")
    ]


WHOLE = "name: r\nmodel: m\ntask: {kind: causal-lm}\nmethod: whole\n"


def test_whole_models_are_exact_and_have_a_section_where_nothing_is_said() -> None:
    run = parse_run_file(WHOLE)
    assert run.compression.policy == "none"
    assert run.whole is not None
    assert (run.whole.fraction, run.whole.weights) == (1.0, "rows")
    assert RunFile.model_validate(run.model_dump(mode="json")) == run, "what the coordinator keeps is the same run file"
    kept = parse_run_file(WHOLE + "compression: {calibration_rows: 8}\nschedule: {cycles: 3, agents: first_come, order: ascending}\n")
    assert (kept.compression.policy, kept.compression.calibration_rows) == ("none", 8)


@pytest.mark.parametrize(
    ("lines", "field", "says"),
    [
        ("schedule: {order: random}", "schedule.order", "all blocks at once"), ("schedule: {wave: 2}", "schedule.wave", "whole.fraction"),
        ("schedule: {damping: 0.5}", "schedule.damping", "mean"), ("schedule: {agents: fixed}", "schedule.agents", "first_come"),
        ("compression: {policy: int8}", "compression.policy", "exact model"), ("compression: {floor: 0.5}", "compression.floor", "exact model"),
        ("compression: {drop_ratio: 0.1}", "compression.drop_ratio", "exact model"), ("compression: {trained: int8}", "compression.trained", "exact model"),
        ("compression: {prune_ratio: 0.5}", "compression.prune_ratio", "exact model"), ("compression: {below_floor: refuse}", "compression.below_floor", "exact model"),
        ("admission: {average: median}", "admission.average", "weights: equal"),
        ("admission: {average: trimmed_mean}", "admission.average", "weights: equal"),
    ],
)  # fmt: skip
def test_what_has_no_effect_on_whole_models_is_refused(lines: str, field: str, says: str) -> None:
    [(line, named, message)] = problems(WHOLE + lines + "\n")
    assert (line, named, says in message) == (5, field, True), message


def test_what_belongs_to_whole_models_is_refused_elsewhere() -> None:
    found = problems(SMALLEST + "whole:\n  fraction: 0.5\n  weights: equal\n  outer: {momentum: 0.5}\n")
    assert [(line, field) for line, field, _ in found] == [(5, "whole.fraction"), (6, "whole.weights"), (7, "whole.outer")]
    assert problems(WHOLE + "whole:\n  outer: {nesterov: true}\n")[0][:2] == (6, "whole.outer")
    assert all("`method: whole`" in message and "block-cycle" in message for *_, message in found)
    assert [field for _, field, _ in problems(SMALLEST + "whole: {}\n")] == ["whole"]
    assert parse_run_file(WHOLE + "whole: {weights: equal}\nadmission: {average: median}\n").admission.average == "median"


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_the_lines() -> None:
    found = problems("name: r r\nmodel: m\ntask: {kind: causal-lm}\nschedule:\n  cycles: 0\n  blocks: [1]\ntrain: {batch_size: 0}\nx: 1\n")
    assert [(line, field) for line, field, _ in found] == [
        (1, "name"), (5, "schedule.cycles"), (6, "schedule.blocks.0"), (7, "train.batch_size"), (8, "x"),
    ]  # fmt: skip


def test_a_wrong_element_of_a_list_has_the_line_of_the_element() -> None:
    found = problems("name: r\nmodel: m\ntask: {kind: causal-lm}\nschedule:\n  blocks:\n    - layers.0\n    - 7\n    - head\n")
    assert [(line, field) for line, field, _ in found] == [(7, "schedule.blocks.1")]


@pytest.mark.parametrize("section", ["task", "schedule", "train", "evaluate", "admission"])
def test_a_section_that_is_no_mapping_is_named(section: str) -> None:
    text = "name: r\nmodel: m\n" + ("" if section == "task" else "task: {kind: causal-lm}\n") + f"{section}: 3\n"
    assert [(line, field) for line, field, _ in problems(text)] == [(text.count("\n"), section)]


def test_steps_and_epochs_exclude_each_other() -> None:
    [(line, field, message)] = problems(SMALLEST + "train:\n  steps: 3\n  epochs: 1\n")
    assert (line, field) == (4, "train")
    assert "steps" in message
    assert "epochs" in message


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("{kind: text-classification}", "needs `labels`"),
        ("{kind: causal-lm, labels: 3}", "has no labels"),
        ("{kind: text-classification, labels: [a]}", "two different labels"),
        ("{kind: text-classification, labels: [a, a, b]}", "two different labels"),
    ],
)
def test_labels_must_fit_the_task(task: str, says: str) -> None:
    [(line, field, message)] = problems(f"name: r\nmodel: m\ntask: {task}\n")
    assert (line, field) == (3, "task")
    assert says in message


@pytest.mark.parametrize("labels", ["1", "many", "[a, 3]", "{a: 1}", "[a, ' ']", "[a, 'a ']", '["\\u00e9", "e\\u0301"]', '[a, "b\\n"]'])
def test_labels_that_are_none_are_named(labels: str) -> None:
    found = problems(f"name: r\nmodel: m\ntask:\n  kind: text-classification\n  labels: {labels}\n")
    assert {line for line, _, _ in found} == {5}
    assert all(field.startswith("task.labels") for _, field, _ in found)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("name: r\nmodel: [m\ntask: {}\n", 3, id="open bracket"),
        pytest.param("name: r\n\tmodel: m\n", 2, id="tab"),
        pytest.param("name: r\nmodel: m: n\n", 2, id="two colons"),
        pytest.param("name: !!python/object:os.system x\n", 1, id="python object"),
        pytest.param("? [1]\n: 2\n", 1, id="unhashable key"),
        pytest.param("name: r\n---\nname: s\n", 2, id="two documents"),
    ],
)
def test_what_is_no_yaml_is_said_with_the_line(text: str, line: int) -> None:
    with pytest.raises(RunFileInvalid, match=rf"^my\.yaml line {line}: this is no YAML: ."):
        parse_run_file(text, "my.yaml")


@pytest.mark.parametrize("text", ["name: 2024-99-99\n", "seed: !!int x\n", "name: " + "[" * 1500], ids=["no date", "no number", "brackets"])
def test_a_value_that_yaml_cannot_make_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(RunFileInvalid, match=r"^my\.yaml: a value cannot be read: ."):
        parse_run_file(text, "my.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- name\n- model\n", "just words", "3"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(RunFileInvalid, match="a run file is a mapping"):
        parse_run_file(text)


def test_a_field_that_is_there_twice_is_refused() -> None:
    found = problems("name: r\nmodel: m\ntask: {kind: causal-lm}\nschedule:\n  cycles: 2\n  cycles: 3\nmodel: n\n")
    assert [(line, field) for line, field, _ in found] == [(6, "schedule.cycles"), (7, "model")]


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("examples/**/*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_good(path: Path) -> None:
    if isinstance(values := yaml.safe_load(path.read_text()), dict) and {"model", "task"} <= set(values):
        assert parse_run_file(path.read_text(), path.name).name == values["name"]
