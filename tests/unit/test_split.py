"""Rows of one file are dealt out to agents: the same way each time, to each at least one, and to whom they belong."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from fedcybgd.local.errors import SplitInvalid
from fedcybgd.local.rows import TrialRows
from fedcybgd.local.split import Split, dealt
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.tables import read_examples

LABELS = [row % 4 for row in range(200)]
SPEC = TaskSpec(task="text-classification", num_labels=2, label_names=["7", "5"], max_length=8)


def test_even_portions_are_alike_and_shuffled() -> None:
    found = dealt(Split.parsed("iid"), LABELS, 3, seed=1)
    assert sorted(Counter(found).values()) == [66, 67, 67]
    assert all(len({LABELS[row] for row, agent in enumerate(found) if agent == one}) == 4 for one in range(3))
    assert found != sorted(found)


@pytest.mark.parametrize("alpha", ["0.05", "0.5", "100"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_dirichlet_split_is_the_same_for_a_seed_and_leaves_nobody_without_rows(alpha: str, seed: int) -> None:
    split = Split.parsed(f"dirichlet:{alpha}")
    found = dealt(split, LABELS, 6, seed)
    assert found == dealt(split, LABELS, 6, seed) != dealt(split, LABELS, 6, seed + 10)
    assert len(found) == len(LABELS)
    assert set(found) == set(range(6))


def test_the_smaller_alpha_the_more_unlike_are_the_labels() -> None:
    def labels_an_agent(alpha: float) -> float:
        found = dealt(Split("dirichlet", alpha=alpha), LABELS, 4, seed=3)
        return sum(len({LABELS[row] for row, agent in enumerate(found) if agent == one}) for one in range(4)) / 4

    assert labels_an_agent(0.01) < labels_an_agent(0.5) <= labels_an_agent(1000) == 4


def test_even_one_row_each_can_be_dealt() -> None:
    assert sorted(dealt(Split("dirichlet", alpha=1e-6), LABELS[:4], 4, seed=0)) == [0, 1, 2, 3]


def test_all_rows_of_a_value_go_to_one_agent_and_the_largest_first() -> None:
    sites = ["oslo"] * 5 + ["rome"] * 3 + ["bern"] * 2
    assert dealt(Split.parsed("column:site"), sites, 3, 0) == [0] * 5 + [1] * 3 + [2] * 2
    assert dealt(Split.parsed("column:site"), sites, 2, 0) == [0] * 5 + [1] * 5, "rome and bern together"
    with pytest.raises(SplitInvalid, match="3 values, too few for 4"):
        dealt(Split.parsed("column:site"), sites, 4, 0)


@pytest.mark.parametrize(
    "text", ["", "idd", "iid:3", "column", "column:", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:nan", "dirichlet:-1"]
)
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(SplitInvalid):
        Split.parsed(text)


def test_fewer_rows_than_agents_are_refused() -> None:
    with pytest.raises(SplitInvalid, match="2 rows are too few for 3"):
        dealt(Split(), [0, 1], 3, 0)


def rows(folder: Path, **more: object) -> TrialRows:
    """Labels that are named by numbers, in a column of another name, and whose row it is."""
    path = folder / "all.csv"
    path.write_text("question,intent,site\n" + "".join(f"text {n},{'75'[n % 2]},{'ab'[n % 2]}\n" for n in range(10)))
    return TrialRows(path, SPEC, {"text": "question", "label": "intent"})


def test_every_agent_reads_the_same_examples_in_its_own_file(tmp_path: Path) -> None:
    given = rows(tmp_path)
    portions = given.split(Split.parsed("column:site"), None, None, 0, tmp_path / "rows")
    assert [(p.name, p.rows, p.values, dict(p.labels)) for p in portions] == [("agent-1", 5, ["a"], {0: 5}), ("agent-2", 5, ["b"], {1: 5})]
    found = [example for portion in portions for example in read_examples(portion.path, SPEC, {})]
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, given.examples()))
    named = given.split(Split(), ["oslo", "rome", "bern"], 3, 0, tmp_path / "named")
    assert [portion.path.name for portion in named] == ["oslo.jsonl", "rome.jsonl", "bern.jsonl"]


SITES: dict[str, list[object]] = {
    "forms of Unicode": ["K\u00f6ln", "Ko\u0308ln", " K\u00f6ln"],
    "numbers": [1, 1.0, "1"],
    "no number": [float("nan"), "a"],
    "half a character": ["\ud83d", "a"],
}


@pytest.mark.parametrize("written", SITES)
def test_what_is_written_alike_is_one_value_and_what_says_nothing_is_refused(written: str, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(
        "".join(json.dumps({"text": "a", "label": 7, "si\u0301te": site}) + "\n" for site in SITES[written])
    )
    given, split = TrialRows(tmp_path / "all.jsonl", SPEC, {}), Split.parsed("column:s\u00edte")
    if len(SITES[written]) == 3:
        assert len(set(given.keys(split))) == 1
    else:
        with pytest.raises(DataError, match=r"row 1: column .* says not whose it is"):
            given.keys(split)


def test_only_the_column_that_is_split_by_is_read(tmp_path: Path) -> None:
    columns = {"text": ["a"], "label": [7], "site": [b"bern"], "when": pyarrow.array([2**62], pyarrow.timestamp("us"))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "all.parquet")
    assert TrialRows(tmp_path / "all.parquet", SPEC, {}).keys(Split.parsed("column:site")) == ["bern"]


def test_images_go_along(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for level in (1, 2):
        Image.new("L", (2, 2), level).save(tmp_path / "pictures" / f"{level}.png")
    (tmp_path / "all.jsonl").write_text('{"image": "1.png", "label": 0}\n{"image": "2.png", "label": 1}\n')
    spec = TaskSpec(task="image-classification", num_labels=2, max_length=8)
    portions = TrialRows(tmp_path / "all.jsonl", spec, {}, images=tmp_path / "pictures").split(Split(), None, 2, 0, tmp_path / "rows")
    for portion in portions:
        (found,) = TrialRows(portion.path, spec, {}, images=portion.images).examples()
        assert found["image"].encoded() == (tmp_path / "pictures" / f"{found['label'] + 1}.png").read_bytes()


def test_a_column_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    given = rows(tmp_path)
    with pytest.raises(SplitInvalid, match="no column 'hospital'; its columns are 'question', 'intent', 'site'"):
        given.keys(Split.parsed("column:hospital"))
    given.path.write_text("question,intent,site\na,7,x\nb,5,\n")
    with pytest.raises(DataError, match="row 2: column 'site'"):
        given.keys(Split.parsed("column:site"))
    with pytest.raises(SplitInvalid, match="goes by labels"):
        TrialRows(given.path, TaskSpec(task="causal-lm", max_length=8), {"text": "question"}).keys(Split.parsed("dirichlet:1"))
