"""Columns under well-known names are found where they can mean one thing alone."""

import pytest

from fedcybgd.shared.files.well_known import clear_ones


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["sentence", "label"], {"text": "sentence"}),
        (["text", "intent"], {"label": "intent"}),
        (["sentence1", "sentence2", "label"], {"text": "sentence1", "text_pair": "sentence2"}),
        (["instruction", "input", "output"], {"prompt": "instruction", "completion": "output"}),
        (["img", "label"], {"image": "img"}),
        (["query", "passage", "answers"], {"question": "query", "context": "passage"}),
        (["text", "label", "label_name"], {}),
        (["prompt", "completion"], {}),
        (["question", "sentence", "label"], {}),  # which of the two is the text?
        (["sentence", "category", "target"], {}),
        (["sentence"], {}),
        (["question", "answer", "label"], {}),  # a text with its label, or a prompt with its completion?
        ([], {}),
    ],
)
def test_a_column_is_mapped_where_nobody_could_mean_another(columns: list[str], found: dict[str, str]) -> None:
    assert clear_ones(columns) == found
