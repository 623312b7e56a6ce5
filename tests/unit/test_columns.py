"""A file of the same source as a run's held-out one is read as that is, as far as it is like it."""

from pathlib import Path

import pytest

from fedcybgd.coordinator.commands.columns import columns_of, mapped, read_as
from fedcybgd.coordinator.domain.run_file import EvaluateSection
from fedcybgd.coordinator.errors import Invalid

HELD_OUT = EvaluateSection(held_out="a.csv", columns={"text": "question", "label": "intent"}, format="csv", separator=";", first_label=1)


def test_what_the_run_file_says_counts_where_the_columns_are_there(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("question;intent\na;1\n")
    assert mapped(HELD_OUT, tmp_path / "new.csv", {}) == HELD_OUT.columns
    assert mapped(HELD_OUT, tmp_path / "new.csv", {"label": "intent"}) == HELD_OUT.columns
    (tmp_path / "new.jsonl").write_text('{"question": "a", "label": 1}\n')
    assert mapped(HELD_OUT, tmp_path / "new.jsonl", {}) == {"text": "question"}
    assert mapped(None, tmp_path / "new.jsonl", {"text": "question"}) == {"text": "question"}
    assert (read_as(HELD_OUT, tmp_path / "new.jsonl").format, read_as(HELD_OUT, tmp_path / "rows.txt").format) == (None, "csv")
    assert read_as(HELD_OUT, tmp_path / "new.jsonl").first_label == 1


@pytest.mark.parametrize("said", ["text", "=question", "text="])
def test_half_a_mapping_is_refused(said: str) -> None:
    with pytest.raises(Invalid, match="FIELD=COLUMN"):
        columns_of([said])
