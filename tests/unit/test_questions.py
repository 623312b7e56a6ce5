"""Rows of questions become windows whose labels point at the answer; what a model says to them is scored as SQuAD's own program does."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertConfig

from fedcybgd.agent.check import _data
from fedcybgd.agent.settings import DataSection
from fedcybgd.coordinator.domain.answer_tally import AnswerCandidate, AnswerTally, exact_match, f1, plain_words
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files import parquet_rows
from fedcybgd.shared.files.tables import examples, read_examples
from fedcybgd.shared.models.answering import MOST_TOKENS, answers, best_span
from fedcybgd.shared.models.batches import IGNORED, forward_logits, loss_sum, row_losses
from fedcybgd.shared.models.question_rows import NOT_HERE, Question, QuestionEncoder
from fedcybgd.shared.models.tokens import TokenizerUnusable
from tests.support.models import WORDS
from tests.support.questions import question, questions

LONG = " ".join(WORDS)
ROOM = 7
"""Tokens of a context beside a question of one, of 11 in all"""


def encoder(folder: Path, max_length: int = 11) -> QuestionEncoder:
    return QuestionEncoder(folder, TaskSpec(task="extractive-qa", max_length=max_length))


def made(folder: Path, row: dict[str, Any], tmp_path: Path, max_length: int = 11) -> Question:
    path = questions(tmp_path / "rows.jsonl", [row])
    [found] = encoder(folder, max_length).questions(examples(path, TaskSpec(task="extractive-qa", max_length=max_length), {}))
    return found


def pointed_at(found: Question) -> list[str]:
    """The parts of the context that the labels of windows point at."""
    parts = []
    for window in found.windows:
        if window.features.labels != NOT_HERE:
            begin, end = (window.offsets[label - window.first] for label in window.features.labels)
            parts.append(found.context[begin[0] : end[1]])
    return parts


@pytest.mark.parametrize("first", range(len(WORDS) - 1))
def test_the_labels_of_one_window_point_at_the_answer_wherever_it_stands(first: int, bert: Path, tmp_path: Path) -> None:
    found = made(bert, question("why", LONG, first, 2), tmp_path)
    assert pointed_at(found) == [" ".join(WORDS[first : first + 2])]


def test_windows_cover_the_context_and_overlap(bert: Path, tmp_path: Path) -> None:
    found = made(bert, question("why", LONG, 0), tmp_path)
    parts = [found.context[w.offsets[0][0] : w.offsets[-1][1]].split() for w in found.windows]
    assert [WORDS.index(part[0]) for part in parts] == [0, 5, 10, 15, len(WORDS) - ROOM]
    assert {word for part in parts for word in part} == set(WORDS)
    assert all(len(w.features.ids) == 11 and w.features.ids[1] == found.windows[0].features.ids[1] for w in found.windows)


def test_of_several_windows_the_one_is_trained_in_which_the_answer_stands_most_amid_others(bert: Path, tmp_path: Path) -> None:
    chosen = [
        [w.features.labels != NOT_HERE for w in made(bert, question("why", LONG, first), tmp_path).windows].index(True) for first in (5, 6)
    ]
    assert chosen == [0, 1]
    [row] = encoder(bert)([{"question": "why", "context": LONG, "answers": ()}])
    assert row.labels == [0, 0], "no answer: the first token"


def test_an_answer_that_no_window_holds_is_cut(bert: Path, tmp_path: Path) -> None:
    found = made(bert, question("why", LONG, 2, 12), tmp_path)
    assert pointed_at(found) == [" ".join(WORDS[5:12])], "the window with most of it"


def test_characters_of_several_bytes_and_words_of_several_tokens_are_found(bert: Path, tmp_path: Path) -> None:
    found = made(bert, question("why", "½ – “naïve” xyz card", 3), tmp_path, 32)
    assert pointed_at(found) == ["xyz"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": {"text": ["card"], "answer_start": [1]}}, "row 1: answer 1: the context reads otherwise at its answer_start, 1"),
        ({"answers": {"text": ["card", "card"], "answer_start": [3, 2]}}, "row 1: answer 2: the context reads otherwise"),
        ({"answers": {"text": ["card"], "answer_start": []}}, "1 of `text` and 0 of `answer_start`"),
        ({"answers": [{"text": "card"}]}, "1 of `text` and 0 of `answer_start`"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "must be text that is not empty"),
        ({"answers": {"text": ["card"], "answer_start": [-1]}}, "a whole number from 0"),
        ({"answers": {"text": ["card"], "answer_start": [True]}}, "a whole number from 0"),
        ({"answers": None}, "answers must be"),
        ({"answers": "card"}, "answers is text, and no JSON"),
        ({"answers": {"text": "card", "answer_start": 3}}, "answers must be"),
        ({"answers": {"text": ["card"] * 101, "answer_start": [3] * 101}}, "at most 100"),
        ({"context": ""}, "must be text that is not empty"),
        ({"context": "my card " * 400}, "at most 64"),
        ({"question": "why " * 9}, "of 11 tokens .* its question leaves 0 for the context"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_by_number(change: dict[str, Any], said: str, bert: Path, tmp_path: Path) -> None:
    row = {"question": "why", "context": "my card", "answers": {"text": ["card"], "answer_start": [3]}} | change
    with pytest.raises(DataError, match=said) as refused:
        made(bert, row, tmp_path)
    assert "row 1" in refused.value.message
    assert refused.value.detail["row"] == 1
    assert "card" not in refused.value.message, "no part of a row is quoted"


def test_a_missing_field_and_renamed_columns(bert: Path, tmp_path: Path) -> None:
    spec = TaskSpec(task="extractive-qa", max_length=32)
    [row] = [question("why", "my card", 1)]
    renamed = questions(tmp_path / "r.jsonl", [{"q": row["question"], "passage": row["context"], "a": row["answers"]}])
    with pytest.raises(DataError, match="question and context and answers"):
        read_examples(renamed, spec, {})
    [read] = read_examples(renamed, spec, {"question": "q", "context": "passage", "answers": "a"})
    listed = questions(tmp_path / "l.jsonl", [row | {"answers": [{"text": "card", "answer_start": 3}]}])
    table = tmp_path / "t.csv"
    table.write_text('question,context,answers\nwhy,my card,"' + json.dumps(row["answers"]).replace('"', '""') + '"\n')
    assert [read] == read_examples(listed, spec, {}) == read_examples(table, spec, {})


@pytest.mark.parametrize(
    "form", [lambda a: a, lambda a: [{"text": t, "answer_start": s} for t, s in zip(*a.values(), strict=True)], json.dumps]
)
def test_a_parquet_file_may_have_answers_as_lists(form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the SQuAD data sets are published."""
    spec, path = TaskSpec(task="extractive-qa", max_length=32), tmp_path / "a.parquet"
    rows = [question("why", "my card is lost", 1), question("how", "the bank", None), question("how", "the bank " + "up " * 300, 0, 300)]
    parquet.write_table(pyarrow.Table.from_pylist([row | {"answers": form(row["answers"])} for row in rows]), path)
    assert read_examples(path, spec, {}) == read_examples(questions(tmp_path / "a.jsonl", rows), spec, {})
    assert next(_data("default", DataSection(path="a.parquet"), path)).ok
    monkeypatch.setattr(parquet_rows, "BYTES_AT_ONCE", 1000)
    with pytest.raises(DataError, match=r"a.parquet row 3 has 1,\d+ bytes"):
        read_examples(path, spec, {})


def test_lists_of_a_few_bytes_without_end_are_refused_before_they_are_read(tmp_path: Path) -> None:
    rows = {"question": ["why"], "context": ["my card"], "answers": [{"text": [""] * 101, "answer_start": [0] * 101}]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="lists of column 'answers' are longer than 100"):
        read_examples(tmp_path / "a.parquet", TaskSpec(task="extractive-qa", max_length=32), {})


def test_a_tokenizer_that_knows_no_places_is_refused(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "canine", "vocab_size": 100}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    with pytest.raises(TokenizerUnusable, match="needs a fast one"):
        encoder(folder)


@pytest.fixture(scope="module")
def model(bert: Path) -> Any:
    torch.manual_seed(3)
    return AutoModelForQuestionAnswering.from_config(BertConfig(**json.loads((bert / "config.json").read_text()))).eval()


@torch.no_grad()
def test_the_loss_is_transformers_own_and_a_row_knows_nothing_of_its_neighbours(model: Any, bert: Path) -> None:
    rows = encoder(bert, 32)([
        {"question": "why", "context": LONG, "answers": ()},
        {"question": "why my", "context": "my card", "answers": ()},
    ])  # fmt: skip
    own = []
    for row, labels in zip(rows, ([3, 5], [4, 4]), strict=True):
        row.labels[:] = labels
        begin, end = (torch.tensor([label]) for label in labels)
        own.append(float(model(input_ids=torch.tensor([row.ids]), start_positions=begin, end_positions=end).loss))
    batch = encoder(bert, 32).collate(rows)
    assert batch.inputs["input_ids"].shape[1] > len(rows[1].ids), "the second is padded"
    logits = forward_logits(model, batch)
    total, count = loss_sum(logits, batch, "extractive-qa")
    losses, counts = row_losses(logits, batch, "extractive-qa")
    assert losses.tolist() == pytest.approx(own, abs=1e-6)
    assert (float(total), count, counts.tolist()) == (pytest.approx(sum(own), abs=1e-6), 2, [1, 1])
    batch.labels[0] = IGNORED
    assert (float(loss_sum(logits, batch, "extractive-qa")[0]), loss_sum(logits, batch, "extractive-qa")[1]) == (pytest.approx(own[1]), 1)


def test_the_best_span_is_that_of_a_search_over_all() -> None:
    torch.manual_seed(0)
    for length in (1, 2, 50):
        logits = torch.randn(length, 2)
        every = [(float(logits[i, 0] + logits[j, 1]), i, j) for i in range(length) for j in range(i, min(length, i + MOST_TOKENS))]
        assert best_span(logits) == max(every)


class Output(dict[str, Any]):
    __getattr__ = dict.__getitem__


class Pointing(nn.Module):
    """A model that is sure of one token, and of the first one by `nothing`."""

    def __init__(self, token: int, nothing: float) -> None:
        super().__init__()
        self.token, self.nothing = token, nothing

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Output:
        logits = (input_ids == self.token).float()
        logits[:, 0] = self.nothing
        return Output(start_logits=logits, end_logits=logits)


@pytest.mark.parametrize(("nothing", "exact"), [(-5.0, [1.0, 0.0]), (5.0, [0.0, 1.0])])
def test_what_is_said_is_the_best_part_of_the_context_over_all_windows(nothing: float, exact: list[float], bert: Path) -> None:
    pin = AutoTokenizer.from_pretrained(bert).convert_tokens_to_ids("pin")
    model = Pointing(pin, nothing)
    answered = {"question": "why", "context": LONG, "answers": read(question("why", LONG, len(WORDS) - 1))}
    without = {"question": "why", "context": "my card is lost", "answers": ()}
    for rows, right in (([answered], 1.0), ([answered, without], sum(exact) / 2)):
        tally = AnswerTally()
        for said in answers(model, encoder(bert), rows, "rows", 64):
            tally.add(AnswerCandidate(said.text, [one.text for one in said.question.answers], rather_nothing=said.margin < 0))
        assert tally.exact_match == tally.f1 == right, "where every question has an answer, none is not said"


def read(row: dict[str, Any]) -> Any:
    from fedcybgd.shared.files.answers import stored_answers

    return stored_answers(row["answers"], row["context"], "row 1", {})


def test_words_are_compared_without_case_articles_and_punctuation() -> None:
    assert plain_words("The  Ann-Arbor\tA, theatre!") == ["annarbor", "theatre"]
    assert exact_match("the Broncos.", ["Denver Broncos", "Broncos"]) == 1
    assert exact_match("Broncos win", ["Broncos"]) == 0
    assert (exact_match("", []), exact_match("Broncos", []), f1("a", []), f1("Broncos", [])) == (1, 0, 1, 0)


def test_f1_is_over_words_and_the_highest_of_the_answers() -> None:
    # Of "Denver Broncos win win" two words of three and of four: precision 2/4, recall 2/3.
    assert f1("Denver Broncos win win", ["x", "the Denver Broncos team"]) == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert f1("win win", ["win"]) == pytest.approx(2 / 3), "a word counts as often as both have it"
    assert f1("lost", ["win"]) == 0


def test_scores_are_means_with_the_error_of_a_mean() -> None:
    tally = AnswerTally()
    for said in ("win", "win", "lost", "Denver win"):
        tally.add(AnswerCandidate(said, ["win"], rather_nothing=True))
    assert tally.exact_match == 0.5
    assert tally.f1 == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    assert tally.exact_match_error == pytest.approx((4 * 0.25 / 3) ** 0.5 / 2)


def test_a_model_without_such_a_class_is_refused_by_type() -> None:
    from fedcybgd.shared.files.configuration import ModelUnknown
    from fedcybgd.shared.models.model_classes import model_of, settings_of

    with pytest.raises(ModelUnknown, match="vit has no extractive-qa model"):
        model_of(settings_of({"model_type": "vit"}), "extractive-qa")
