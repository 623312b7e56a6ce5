"""Examples become tokens and labels alike on both sides; the loss is over what is to be learnt, and over nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.models.batches import IGNORED, chunks, forward_logits, loss_sum
from fedcybgd.shared.models.text_rows import ClassificationEncoder, Features, LanguageEncoder

CLS, SEP = 2, 3


def test_classification_adds_special_tokens_and_keeps_the_label(bert: Path) -> None:
    encoder = ClassificationEncoder(bert, TaskSpec(task="text-classification", max_length=16))
    [one, two] = encoder([{"text": "my card", "label": 1}, {"text": "pin", "label": 0}])
    assert (one.ids[0], one.ids[-1], one.labels) == (CLS, SEP, [1])
    assert two.labels == [0]
    assert len(one.ids) == 4


def test_two_sentences_are_told_apart_by_their_segments(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}))
    encoder = ClassificationEncoder(folder, TaskSpec(task="text-classification", max_length=16))
    [pair] = encoder([{"text": "my card", "text_pair": "pin", "label": 1}])
    assert pair.ids.count(SEP) == 2
    assert pair.segments == [0, 0, 0, 0, 1, 1]
    batch = encoder.collate([pair])
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


def test_a_long_row_is_cut(bert: Path) -> None:
    [row] = ClassificationEncoder(bert, TaskSpec(task="text-classification", max_length=5))(
        [{"text": "my card is lost please help", "label": 1}]
    )
    assert len(row.ids) == 5
    assert (row.ids[0], row.ids[-1]) == (CLS, SEP)


def test_a_batch_is_padded_to_its_longest_row(bert: Path) -> None:
    encoder = ClassificationEncoder(bert, TaskSpec(task="text-classification", max_length=16))
    batch = encoder.collate(encoder([{"text": "my card is lost", "label": 1}, {"text": "pin", "label": 0}]))
    assert batch.inputs["input_ids"].shape == batch.mask.shape == (2, 6)
    assert batch.mask.tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert batch.inputs["input_ids"][1, 3:].tolist() == [0, 0, 0]
    assert batch.labels.tolist() == [1, 0]
    assert batch.num_tokens == 9


@pytest.fixture
def tokens(llama: Path) -> LanguageEncoder:
    return LanguageEncoder(llama, TaskSpec(task="causal-lm", max_length=8))


def ids(encoder: LanguageEncoder, text: str) -> list[int]:
    found: list[int] = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def test_only_the_completion_is_learnt(tokens: LanguageEncoder) -> None:
    tokens.begin, tokens.end = 2, 3
    [row] = tokens([{"prompt": "why is my", "completion": "card lost"}])
    answer = [*ids(tokens, "card lost"), 3]
    assert row.ids == [2, *ids(tokens, "why is my"), *answer]
    assert row.labels == [IGNORED] * 4 + answer


def test_a_row_that_is_too_long_loses_the_beginning_of_its_prompt(tokens: LanguageEncoder) -> None:
    tokens.begin, tokens.end = None, 3
    prompt, completion = "why how my is was not working", "card lost"
    [row] = tokens([{"prompt": prompt, "completion": completion}])
    answer = [*ids(tokens, completion), 3]
    assert len(row.ids) == 8
    assert row.ids == ids(tokens, prompt)[-5:] + answer
    assert row.labels == [IGNORED] * 5 + answer


def test_a_completion_that_is_too_long_keeps_one_token_before_it(tokens: LanguageEncoder) -> None:
    tokens.begin, tokens.end = None, 3
    completion = "why how my is was not working please help i need"
    [row] = tokens([{"prompt": "card lost", "completion": completion}])
    assert row.ids == [*ids(tokens, "lost"), *ids(tokens, completion)[:7]]
    assert row.labels == [IGNORED, *ids(tokens, completion)[:7]]


def test_an_empty_prompt_leaves_the_completion(tokens: LanguageEncoder) -> None:
    tokens.begin, tokens.end = None, None
    [row] = tokens([{"prompt": "", "completion": "card lost"}])
    assert row.ids == row.labels == ids(tokens, "card lost")


def test_plain_text_is_one_stream_cut_into_windows(tokens: LanguageEncoder) -> None:
    tokens.begin, tokens.end = 2, 3
    texts = ["my card is lost", "why is my pin not working please help"]
    windows = tokens([{"text": text} for text in texts])
    stream = [token for text in texts for token in (2, *ids(tokens, text))]
    assert [token for window in windows for token in window.ids] == stream
    assert [len(window.ids) for window in windows] == [8, 6]
    assert all(window.labels == window.ids for window in windows)


def test_texts_are_parted_by_the_end_token_where_there_is_no_beginning(tokens: LanguageEncoder) -> None:
    tokens.begin, tokens.end = None, 3
    [window] = tokens([{"text": "my card"}, {"text": "pin"}])
    assert window.ids == [*ids(tokens, "my card"), 3, *ids(tokens, "pin"), 3]


def test_a_last_window_of_one_token_has_nothing_to_predict_and_is_left_out(tokens: LanguageEncoder) -> None:
    tokens.begin, tokens.end = None, None
    windows = tokens([{"text": "the a card money bank lost stolen pay top"}])
    assert [len(window.ids) for window in windows] == [8]
    with pytest.raises(DataError, match="fewer than two tokens"):
        tokens([{"text": "card"}])


def test_padding_of_a_language_model_is_not_learnt(tokens: LanguageEncoder) -> None:
    batch = tokens.collate([Features([5, 6, 7], [5, 6, 7]), Features([8, 9], [IGNORED, 9])])
    assert batch.labels.tolist() == [[5, 6, 7], [IGNORED, 9, IGNORED]]
    assert "token_type_ids" not in batch.inputs


def test_the_loss_of_a_language_model_is_that_of_the_next_token(tokens: LanguageEncoder, llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    batch = tokens.collate([Features([5, 6, 7, 8], [IGNORED, IGNORED, 7, 8]), Features([8, 9], [8, 9])])
    with torch.no_grad():
        logits = forward_logits(model, batch)
        total, count = loss_sum(logits, batch, "causal-lm")
        theirs = model(**batch.inputs, labels=batch.labels).loss
    assert count == 3
    assert total.item() == pytest.approx(3 * theirs.item(), rel=1e-5)
    wanted = -sum(functional.log_softmax(logits[row], -1)[at, token].item() for row, at, token in [(0, 1, 7), (0, 2, 8), (1, 0, 9)])
    assert total.item() == pytest.approx(wanted, rel=1e-5)


def test_what_stands_in_the_prompt_has_no_gradient_of_its_own(tokens: LanguageEncoder) -> None:
    """The logits that would predict prompt or padding tokens get no gradient at all."""
    batch = tokens.collate([Features([5, 6, 7, 8], [IGNORED, IGNORED, 7, 8]), Features([8, 9], [IGNORED, 9])])
    logits = torch.randn(2, 4, 100, requires_grad=True)
    loss_sum(logits, batch, "causal-lm")[0].backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(-1).ne(0).tolist() == [[False, True, True, False], [True, False, False, False]]


def test_the_loss_of_a_classifier_is_a_sum_over_rows(bert: Path) -> None:
    encoder = ClassificationEncoder(bert, TaskSpec(task="text-classification", max_length=16))
    batch = encoder.collate(encoder([{"text": "my card", "label": 1}, {"text": "pin", "label": 0}]))
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    total, count = loss_sum(logits, batch, "text-classification")
    assert count == 2
    assert total.item() == pytest.approx(functional.cross_entropy(logits, torch.tensor([1, 0])).item() * 2)


def test_a_padded_row_has_the_logits_that_it_has_alone(llama: Path) -> None:
    encoder = LanguageEncoder(llama, TaskSpec(task="causal-lm", max_length=16))
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    short, long = Features([5, 6], [5, 6]), Features([7, 8, 9, 10, 11], [7, 8, 9, 10, 11])
    with torch.no_grad():
        alone = forward_logits(model, encoder.collate([short]))
        beside = forward_logits(model, encoder.collate([short, long]))
    assert torch.allclose(beside[0, :2], alone[0], atol=1e-6)


def test_chunks() -> None:
    assert chunks(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert chunks([], 2) == []
