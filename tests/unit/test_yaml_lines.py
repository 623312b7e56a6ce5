"""What YAML itself allows, and what would hang or break whoever reads it, is refused in words."""

import pytest

from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, parse_run_file

GOOD = "name: a\nmodel: b\ntask: {kind: text-classification, labels: 3}\n"
ENORMOUS = 10**400
LAUGHS = "".join(f"k{n}: &k{n} {{{', '.join(f'x{i}: *k{n - 1}' for i in range(9))}}}\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nmodel: b\ntask: &t {labels: 3, x: *t}\n", "the alias in line 3 stands inside of what it means"),
        ("&all\nname: *all\n", "stands inside of what it means"),
        (f"k0: &k0 {{a: 1}}\n{LAUGHS}{GOOD}", "with its aliases written out it has more than"),
        (f"{GOOD}schedule: {{layers_per_block: {ENORMOUS}}}\n", "line 4: schedule.layers_per_block: must be 10000 or less"),
        (f"{GOOD}exposure: {{max_exact_blocks: {ENORMOUS}}}\n", "line 4: exposure.max_exact_blocks: must be 100000 or less"),
        (f"{GOOD}evaluate: {{held_out: a.csv, every: {ENORMOUS}}}\n", "line 4: evaluate.every"),
        (f"{GOOD}seed: !!int ''\n", "a value cannot be read"),
        (f"{GOOD}keep_best: !!bool x\n", "a value cannot be read"),
        (f"{GOOD}keep_best: !!timestamp x\n", "a value cannot be read"),
        (f"{GOOD}agents: [ok, no]\n", "line 4: agents.1: must be text (not False, as YAML reads it; in quotes it is text)"),
        (f"{GOOD}agents: [0x1F]\n", "agents.0: must be text (not 31, as YAML reads it; in quotes it is text)"),
        (GOOD + "".join(f"k{n}: 1\n" for n in range(5000)), "line 4: k0: there is no such field"),
    ],
)
def test_what_cannot_be_walked_through_is_refused(text: str, said: str) -> None:
    with pytest.raises(RunFileInvalid) as error:
        parse_run_file(text)
    assert said in error.value.message
    assert error.value.message.count("\n") < 1000


def test_an_alias_means_what_it_stands_for() -> None:
    run = parse_run_file(f"{GOOD}schedule: {{blocks: &b [head], always: *b}}\n")
    assert (run.schedule.blocks, run.schedule.always) == (["head"], ["head"])


@pytest.mark.parametrize(
    "field", ["train.batch_size", "train.epochs", "train.max_grad_norm", "schedule.wave", "evaluate.first_label", "seed"]
)
@pytest.mark.parametrize("truth", ["yes", "Off", "true"])
def test_a_truth_is_no_number(field: str, truth: str) -> None:
    section, _, name = field.rpartition(".")
    more = {"evaluate": "held_out: a.csv, "}.get(section, "")
    with pytest.raises(RunFileInvalid, match=r"line 4: [a-z_.]+: must be a number; YAML reads yes, no, on and off as true and false"):
        parse_run_file(f"{GOOD}{section}: {{{more}{name}: {truth}}}\n" if section else f"{GOOD}{name}: {truth}\n")


def test_a_truth_is_one_where_one_is_asked_for() -> None:
    run = parse_run_file(f"{GOOD}evaluate: {{held_out: a.csv, quotes: no, every: cycle}}\nkeep_best: yes\n")
    assert isinstance(run, RunFile)
    assert run.keep_best is True
    assert run.evaluate is not None
    assert run.evaluate.quotes is False
