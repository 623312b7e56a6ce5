"""Every supported family is trained block by block as plain autograd on transformers' own model would train it, cached or not."""

import functools
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.models.assembly import names_by_canonical
from tests.support.families import QUESTIONS, SUPPORTED
from tests.support.pictures import rows as pictures
from tests.support.training import Home, apart, options, same, train

NEGLIGIBLE = 1e-5
"""Of the largest gradient: what is smaller is rounding, and Adam makes anything of it."""
LONGEST = 16
"""Tokens of a row; completions are kept before prompts."""
NO_CACHE = {"xlnet", "longformer", "swin", "convnext"}
"""Families whose layers lay out hidden states in their own way."""


@functools.cache
def place_of(family: str, folder: Path, tokenizer: Path) -> tuple[Home, Visitor]:
    (folder / family).mkdir()
    return Home(folder / family, tokenizer, family), Visitor("cpu", options())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def place(family: str, folder: Path, bert: Path) -> tuple[Home, Visitor]:
    return place_of(family, folder, bert)


def gradients(home: Home) -> dict[str, Tensor | None]:
    """By name in the model: those of the mean loss over all rows, as transformers and autograd give them."""
    folder = home.folder / "whole"
    folder.mkdir()
    for name, path in home.files.items():
        shutil.copyfile(path, folder / name)
    if home.task == "image-classification":
        return gradients_of_images(home, folder)
    if home.task == "extractive-qa":
        return gradients_of_questions(home, folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in home.rows.read_text().splitlines()]
    if home.task == "text-classification":
        ids = words([row["text"] for row in rows])["input_ids"]
        labels = [[row["label"]] for row in rows]
    else:
        begin, end = ([token] if token is not None else [] for token in (words.bos_token_id, words.eos_token_id))
        halves = [[words(row[part], add_special_tokens=False)["input_ids"] for part in ("prompt", "completion")] for row in rows]
        answers = [(answer + end)[: LONGEST - 1] for _, answer in halves]
        questions = [(begin + question)[-(LONGEST - len(answer)) :] for (question, _), answer in zip(halves, answers, strict=True)]
        ids = [question + answer for question, answer in zip(questions, answers, strict=True)]
        labels = [[-100] * len(question) + answer for question, answer in zip(questions, answers, strict=True)]
    model = home.model
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for tokens, targets in zip(map(torch.tensor, ids), map(torch.tensor, labels), strict=True):
        logits = model(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None]).logits  # row by row: nothing is padded
        if home.task == "causal-lm":
            logits, targets = logits[0, :-1], targets[1:]
        total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        count += int((targets != -100).sum())
    (total / count).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def gradients_of_images(home: Home, folder: Path) -> dict[str, Tensor | None]:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    found = pictures(8)
    pixels = processor([Image.open(io.BytesIO(row["image"]["bytes"])) for row in found], return_tensors="pt")["pixel_values"]
    home.model.zero_grad()
    torch.nn.functional.cross_entropy(home.model(pixel_values=pixels).logits, torch.arange(len(found)) % 3).backward()
    return {name: parameter.grad for name, parameter in home.model.named_parameters()}


def gradients_of_questions(home: Home, folder: Path) -> dict[str, Tensor | None]:
    """With transformers' own loss; an answer stands where its first character and its last one do."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in home.rows.read_text().splitlines()]
    home.model.zero_grad()
    for row in rows:
        begin, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        encoded = words(row["question"], row["context"], return_tensors="pt")
        first, last = (torch.tensor([encoded.char_to_token(at, sequence_index=1)]) for at in (begin, begin + len(text) - 1))
        inputs = {name: encoded[name] for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded}
        (home.model(**inputs, start_positions=first, end_positions=last).loss / len(rows)).backward()
    return {name: parameter.grad for name, parameter in home.model.named_parameters()}


@pytest.mark.parametrize("family", [*SUPPORTED, *QUESTIONS])
def test_every_block_learns_what_autograd_says(family: str, place: tuple[Home, Visitor]) -> None:
    home, visitor = place
    found = gradients(home)
    full = names_by_canonical(home.model)
    largest = max(float(g.abs().max()) for g in found.values() if g is not None)
    checked = 0
    for block in home.blocks:
        # One step of a fresh Adam goes against the sign of each gradient, by the learning rate.
        delta = train(home.request(block, steps=1, batch_size=8, warmup_steps=0, max_grad_norm=None), visitor)
        for name, change in delta.items():
            if "::" in name:
                continue
            gradient = found[full[name]]
            if (
                rows := delta.get(f"{name}::rows")
            ) is not None and gradient is not None:  # of these rows alone; others must have no gradient
                change = torch.zeros_like(gradient).index_copy(0, rows.long(), change)
            if gradient is None:
                assert not change.any(), f"{name} has no gradient"
                continue
            clear = gradient.abs() > NEGLIGIBLE * largest
            assert bool((change[clear].sign() == -gradient[clear].sign()).all()), name
            assert bool(change.any()) == bool(gradient.any()), name
            checked += int(clear.sum())
    assert checked > 0.3 * sum(p.numel() for p in home.model.parameters() if p.grad is not None and p.ndim < 2)


@pytest.mark.parametrize("family", [*SUPPORTED, "bert-questions"])
def test_a_prefix_cache_changes_nothing(family: str, place: tuple[Home, Visitor], caplog: pytest.LogCaptureFixture) -> None:
    home, visitor = place
    rows_alone: Any = {"batch_size": 1, "steps": 10}  # of eight rows
    in_batches: Any = {"batch_size": 3, "steps": 5, "warmup_steps": 4}
    for block in {"albert": ["pooler"], "albert-groups": ["layers.1", "head"]}.get(family, ["layers.1", [*home.blocks][-1]]):
        plain = [train(home.request(block, **asked), visitor) for asked in (rows_alone, in_batches)]
        visitor._options = options(prefix_cache="memory")
        cached = [train(home.request(block, **asked), visitor) for asked in (rows_alone, in_batches)]
        visitor._options = options()
        assert same(plain[0], cached[0]), block
        assert apart(plain[1], cached[1]) < 1e-2, block
    assert visitor._emulator is not None
    runs = visitor._emulator[1].runs_of_prefix
    assert all(runs.values()) is (family not in NO_CACHE), "it is off where it must be, and only there"
    assert ("no prefix cache" in caplog.text) is (family in NO_CACHE)
    if family.startswith("albert"):
        assert runs == {"albert": {(("pooler",), 1, ()): 3}, "albert-groups": {(("layers.1",), 1, ()): 2, (("head",), 2, ()): 1}}[family]


def test_the_docs_list_the_families_that_are_held_here() -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    listed = {word for line in page.splitlines() if line.startswith("|") for word in re.findall(r"`([a-z0-9_-]+)`", line)}
    held = {make(2).config.model_type for _, make in SUPPORTED.values()}
    assert held <= listed
    assert listed - held == {"text-classification", "causal-lm", "image-classification", "extractive-qa"}
