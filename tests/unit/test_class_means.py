"""A head begins at class means, in a round before the first cycle; where owners do not let labels be told, at none of a single row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer

from benchmarks import reference
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain import band
from fedcybgd.coordinator.domain.band import BlockDelta
from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, checked
from fedcybgd.shared.contract.block_names import LONGEST_MEAN, of_labels
from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings
from tests.support.models import tiny_bert
from tests.support.training import Home, train, unset_rows
from tests.unit.test_label_skew_noticed import AGENTS, LABELS, write

WEIGHT = "classifier.weight"
TINY = ParameterGroup(blocks=["head"], learning_rate=1e-9)


@pytest.fixture
def home(tmp_path: Path, bert: Path) -> Home:
    """Of labels 0 and 1 nobody has set the row; the rows have labels 0 and 2."""
    made = Home(tmp_path, bert, "bert")
    unset_rows(made, [0, 1])
    rows = [json.loads(line) for line in made.rows.read_text().splitlines()]
    made.rows.write_text("".join(json.dumps(row | {"label": 2 * (row["label"] % 2)}) + "\n" for row in rows))
    return made


def visited(home: Home, tell_labels: bool = True, **settings: Any) -> dict[str, torch.Tensor]:
    """A visit of the head that trains next to nothing."""
    asked = {"head_start": "class_means", "label_skew": "smoothed", "steps": 2, "groups": [TINY], **settings}
    request = home.request("head")
    train_of = TrainSettings.model_validate({**dict(request.train), **asked})
    return train(request.model_copy(update={"train": train_of, "data": request.data.model_copy(update={"tell_labels": tell_labels})}))


def means_by_hand(home: Home, tokenizer: Path, label: int) -> torch.Tensor:
    """Of what enters the head's matrix, a row at a time."""
    entered: list[torch.Tensor] = []
    hook = home.model.get_submodule("classifier").register_forward_pre_hook(lambda _module, args: entered.append(args[0]))
    encode = AutoTokenizer.from_pretrained(tokenizer)
    rows = [json.loads(line) for line in home.rows.read_text().splitlines()]
    with torch.no_grad():
        for row in rows:
            home.model(**encode(row["text"], truncation=True, max_length=16, return_tensors="pt"))
    hook.remove()
    return torch.cat([features for features, row in zip(entered, rows, strict=True) if row["label"] == label]).mean(0)


def test_rows_that_nobody_has_set_begin_at_the_means_of_the_agents_rows(home: Home, bert: Path) -> None:
    means = {label: means_by_hand(home, bert, label) for label in (0, 2)}
    usual = float(sum(mean.norm() for mean in means.values())) / 2
    delta = visited(home)[WEIGHT]
    expected = LONGEST_MEAN / max(1.0, usual) * functional.normalize(means[0], dim=0)
    assert torch.allclose(delta[0], expected, rtol=1e-3, atol=1e-4)
    assert not delta[1].any(), "no rows have it"
    assert delta[2].abs().max() < 1e-6, "somebody has taught it already"


def test_without_the_owners_word_the_means_are_the_same(home: Home) -> None:
    assert torch.equal(visited(home, tell_labels=False)[WEIGHT][0], visited(home)[WEIGHT][0])
    assert visited(home, head_start="fresh")[WEIGHT].abs().max() < 1e-6, "nobody asked"


def test_without_the_owners_word_no_mean_is_of_one_row(home: Home, bert: Path) -> None:
    """Such a label begins at the mean of all rows, and an agent of one row sends none."""
    rows = [json.loads(line) for line in home.rows.read_text().splitlines()]
    home.rows.write_text("".join(json.dumps(row | {"label": 0 if n == 3 else 2}) + "\n" for n, row in enumerate(rows)))
    unset_rows(home, [0, 1, 2])
    means = {label: means_by_hand(home, bert, label) for label in (0, 2)}
    of_all = functional.normalize(means[0] + (len(rows) - 1) * means[2], dim=0)
    of_one, of_others = (functional.normalize(mean, dim=0) for mean in means.values())
    apart = (of_one - of_all).norm()
    assert apart > 1e-5, "features of these rows are much alike, and not the same"
    for tells, expected in ((True, of_one), (False, of_all)):
        found = functional.normalize(visited(home, tells, batch_size=len(rows))[WEIGHT], dim=1)
        assert (found[0] - expected).norm() < apart / 5
        assert (found[2] - of_others).norm() < apart / 5
    home.rows.write_text(json.dumps(rows[0]) + "\n")
    assert visited(home, tell_labels=False)[WEIGHT].abs().max() < 1e-6


def test_the_matrix_of_labels_is_the_last_one_of_so_many_rows() -> None:
    assert of_labels({"dense.weight": (4, 4), "out.bias": (4,), "out.weight": (4, 8)}, 4) == "out.weight"
    assert of_labels({"dense.weight": (4, 4)}, 3) is None


def run_file(**sections: Any) -> dict[str, Any]:
    schedule = {"cycles": 1, "blocks": ["layers"], "always": ["pooler", "head"], "wave": 2, "damping": 0.4} | sections.pop("schedule", {})
    return {
        "name": "r", "model": "m", "task": {"kind": "text-classification", "labels": LABELS, "max_length": 8}, "schedule": schedule,
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "always_learning_rate": 5e-3, "precision": "float32"}, "seed": 1, **sections,
    }  # fmt: skip


def accuracies(
    bert: Path, folder: Path, values: dict[str, Any], tell_labels: bool = True
) -> tuple[list[float], reference.Reference, list[set[str]]]:
    """After each round, of agents with two labels each that no other has; and the blocks that each round changed."""
    folder.mkdir()
    paths = [write(folder / f"{agent}.jsonl", [2 * agent, 2 * agent + 1] * 12) for agent in range(AGENTS)]
    held_out = write(folder / "held-out.jsonl", list(range(LABELS)) * 4)
    run = reference.begin(folder, bert, values)
    run.tell_labels = tell_labels
    found, changed, before = [], [], run.digests()

    def look(_: int) -> None:
        nonlocal before
        found.append(run.evaluate(held_out).accuracy or 0.0)
        changed.append({block for block, digest in run.digests().items() if digest != before[block]})
        before = run.digests()

    reference.run(run, paths, folder / "scratch", visitors=[Visitor("cpu")] * AGENTS, after_round=look)
    return found, run, changed


@pytest.mark.parametrize("tell_labels", [True, False])
def test_labels_that_no_agent_has_together_are_told_apart(tmp_path: Path, tell_labels: bool) -> None:
    bert = tiny_bert(tmp_path / "bert", initializer_range=0.3)  # of which words make different features
    fresh, _, _ = accuracies(bert, tmp_path / "fresh", run_file(), tell_labels)
    means, run, changed = accuracies(bert, tmp_path / "means", run_file(schedule={"head_start": "class_means"}), tell_labels)
    assert (len(means), changed[0], len(run.metrics)) == (len(fresh) + 1, {"head"}, AGENTS + 2)
    assert fresh[-1] <= 0.4, "two labels at the most are told apart from each other, and six by none"
    assert means[-1] >= 0.6, (fresh, means)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"task": {"kind": "causal-lm"}, "train": {}}, "no labels"), ({"schedule": {"always": ["pooler"]}}, r"always: \[head\]"),
        ({"train": {"label_skew": "none"}}, "label_skew none"), ({"schedule": {"head_start": "zero"}}, "class_means"),
        ({"method": "adapters", "schedule": {"always": ["head"], "head_start": "class_means"}}, "under `method: adapters`"),
    ],
)  # fmt: skip
def test_where_it_means_nothing_it_is_refused_by_its_name(change: dict[str, Any], why: str) -> None:
    values = run_file() | change
    values["schedule"] = {"always": ["head"], "head_start": "class_means"} | change.get("schedule", {})
    with pytest.raises(RunFileInvalid, match=rf"schedule\.head_start.*{why}"):
        checked(values)


def test_a_delta_may_go_as_far_as_means_go() -> None:
    spec = RunFile.model_validate(run_file())
    delta = BlockDelta(norm=LONGEST_MEAN, base_norm=0.0, size=LABELS * 64, sketch="")
    for start, within in (("class_means", True), ("fresh", False)):
        settings = TrainSettings(
            task="text-classification", num_labels=LABELS, max_length=8, groups=[TINY], seed=1, label_skew=spec.label_skew, head_start=start
        )
        assert (delta.norm <= band.reach(settings, "head", delta, steps=1)) == within
