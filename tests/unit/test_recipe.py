"""A recipe goes by the rows, the model and the agents; what cannot be a start is refused with what to do."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml

from fedcybgd.coordinator.commands import recipe_facts
from fedcybgd.coordinator.domain.recipe import RecipeModel, RecipeRows, RecipeTask, recipe
from fedcybgd.coordinator.domain.recipe_file import written_recipe
from fedcybgd.coordinator.domain.run_file import checked, parse_run_file
from fedcybgd.shared.contract.errors import DataError
from tests.support import pictures

STORIES = Path(__file__).parents[2] / "examples" / "models" / "stories260K"
BERT = RecipeModel("minilm", ("embeddings", *(f"layers.{i}" for i in range(6)), "pooler", "head"), 384, 512)
VIT = RecipeModel("vit", ("embeddings", *(f"layers.{i}" for i in range(5)), "norm", "head"), 64)
LLAMA = RecipeModel("llama", ("embeddings", *(f"layers.{i}" for i in range(5)), "norm"), 64, 512)


def rows(held_out: int = 1000, **more: Any) -> RecipeRows:
    return RecipeRows("test.jsonl", held_out, 61, **{"labels": 2, **more})


@pytest.mark.parametrize(
    ("layers", "agents", "wave", "damping"),
    [(6, 6, 3, 0.4), (12, 6, 3, 0.4), (4, 6, 2, 0.5), (6, 2, 2, 0.5), (6, 1, 1, 1.0), (2, 6, 1, 1.0)],
)
def test_waves_are_half_of_the_layers_three_at_the_most_and_of_agents_that_are_there(
    layers: int, agents: int, wave: int, damping: float
) -> None:
    model = RecipeModel("m", (*(f"layers.{i}" for i in range(layers)), "head"), 384)
    schedule = recipe("r", "text-classification", model, rows(), agents)["schedule"]
    assert (schedule["wave"], schedule["damping"], schedule["always"]) == (wave, damping, ["head"])


def test_few_rows_take_smaller_steps_and_more_passes() -> None:
    few, many = (recipe("r", "text-classification", BERT, rows(of_agents=number))["train"] for number in (300, 30_000))
    assert few["learning_rate"] == many["learning_rate"] / 2
    assert (few["epochs"], few["batch_size"]) == (2, 8)
    assert (many["epochs"], many["batch_size"]) == (1, 32)
    assert recipe("r", "text-classification", BERT, rows(labels=77))["train"]["always_learning_rate"] > many["always_learning_rate"]


def test_heads_of_waves_begin_at_class_means() -> None:
    """Where agents have unlike labels the fresh head of a wave learns next to nothing else; one after another it does."""
    alone = RecipeModel("alone", ("layers.0", "layers.1", "head"), 384)
    bare = RecipeModel("bare", tuple(f"layers.{i}" for i in range(6)), 384)
    three = rows(labels=3)
    found = {model.name: recipe("r", "text-classification", model, three)["schedule"].get("head_start") for model in (BERT, alone, bare)}
    assert found == {"minilm": "class_means", "alone": None, "bare": None}
    assert "head_start" not in recipe("r", "text-classification", BERT, rows(labels=2))["schedule"]
    assert "head_start" not in recipe("r", "extractive-qa", BERT, rows(labels=None))["schedule"]


@pytest.mark.parametrize(
    ("task", "trained"),
    [("text-classification", "int8"), ("causal-lm", "exact"), ("extractive-qa", "exact"), ("image-classification", "exact")],
)
def test_where_it_was_measured_what_is_trained_begins_at_rounded_values(task: RecipeTask, trained: str) -> None:
    model = {"causal-lm": LLAMA, "image-classification": VIT}.get(task, BERT)
    labels = 2 if task.endswith("classification") else None
    assert checked(recipe("r", task, model, rows(labels=labels))).compression.trained == trained


def test_questions_have_windows_of_the_usual_length() -> None:
    for length, most in ((99, 104), (1000, 384)):
        found = RecipeRows("test.jsonl", 100, length)
        values = recipe("r", "extractive-qa", BERT, found)
        assert values["task"] == {"kind": "extractive-qa", "max_length": most}
        assert ("cut into several" in written_recipe(values, BERT, found, 6, counted=True)) == (most < length)


def test_wider_models_take_smaller_steps() -> None:
    wide = RecipeModel("wide", BERT.blocks, 1024)
    rates = [recipe("r", "text-classification", model, rows(30_000))["train"]["learning_rate"] for model in (BERT, wide)]
    assert rates == [6e-4, pytest.approx(1.4e-4)]


def test_images_are_learnt_one_block_after_another_and_have_no_length(tmp_path: Path) -> None:
    path = pictures.parquet(tmp_path / "held-out.parquet", [{"img": row["image"], "fine_label": row["label"]} for row in pictures.rows(9)])
    found = recipe_facts.rows_of(
        path, "image-classification", {}, None, recipe_facts.counting("image-classification", tmp_path, {}), path.name
    )
    assert (found.columns, found.labels, found.held_out) == ({"image": "img", "label": "fine_label"}, 2, 9)
    values = recipe("r", "image-classification", VIT, found)
    assert values["task"] == {"kind": "image-classification", "labels": 2}
    assert (values["schedule"]["wave"], values["schedule"]["always"], values["calibrate"]) == (1, ["norm", "head"], True)


def test_rows_are_no_longer_than_the_model_takes() -> None:
    assert recipe("r", "text-classification", BERT, rows())["task"]["max_length"] == 64
    short = RecipeModel("short", BERT.blocks, 384, 50)
    assert recipe("r", "text-classification", short, rows())["task"]["max_length"] == 50


@pytest.mark.parametrize(("task", "model", "found"), [
    ("text-classification", BERT, rows(labels=("no: 1", "# yes", "ü"), columns={"text": "question"})),
    ("text-classification", BERT, rows(of_agents=300)),
    ("causal-lm", LLAMA, rows(labels=None, is_text=True)),
    ("causal-lm", LLAMA, rows(labels=None, columns={"prompt": "question", "completion": "answer"})),
    ("extractive-qa", BERT, rows(labels=None, columns={"context": "passage"})),
    ("image-classification", VIT, rows(labels=("cat", "dog"), columns={"image": "img"})),
])  # fmt: skip
@pytest.mark.parametrize("corrections", [False, True])
def test_what_is_written_is_the_recipe_and_a_run_file(task: RecipeTask, model: RecipeModel, found: RecipeRows, corrections: bool) -> None:
    values = recipe("intents", task, model, found, corrections=corrections)
    text = written_recipe(values, model, found, 6, counted=True)
    assert yaml.safe_load(text) == values
    spec = parse_run_file(text)
    assert (spec.corrections is not None) == corrections
    assert spec == checked(values)
    assert (spec.keep_best, spec.evaluate and spec.evaluate.every) == (True, "cycle"), (
        "the model before any training is scored, and kept if it is best"
    )


def written(folder: Path, *made: dict[str, Any]) -> Path:
    path = folder / "held-out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def look(
    path: Path,
    task: RecipeTask = "text-classification",
    columns: dict[str, str] | None = None,
    labels: int | None = None,
    train: Path | None = None,
) -> RecipeRows:
    return recipe_facts.rows_of(
        path, task, columns or {}, labels, recipe_facts.counting("text-classification", None, {}), path.name, train=train
    )


@pytest.mark.parametrize("text", [
    "Once upon a time there was a girl who lost her card on the train, and what did she do?", "我的卡在火车上丢了，请问怎么办？", "😀🎉 wow",
    "Kraftfahrzeughaftpflichtversicherung, rückwirkend", "def f(x):\n    return {'a': x**2}",
])  # fmt: skip
def test_without_a_tokenizer_rows_are_thought_rather_too_long_than_cut(text: str) -> None:
    """Three characters a token were half of what a vocabulary of 512 makes, and a tenth of it in other scripts."""
    config = json.loads((STORIES / "config.json").read_text())
    real, guessed = (recipe_facts.counting("causal-lm", place, config)({"text": text}) for place in (STORIES, None))
    assert real <= guessed <= 2 * real + 3


def test_columns_and_labels_are_found(tmp_path: Path) -> None:
    pairs = written(tmp_path, *({"sentence1": "a b", "sentence2": "c", "label": i % 3} for i in range(7)))
    found = look(pairs)
    assert (found.columns, found.labels, found.held_out) == ({"text": "sentence1", "text_pair": "sentence2"}, 3, 7)
    assert look(pairs, labels=5).labels == 5
    named = look(written(tmp_path, {"text": "a", "intent": "lost"}, {"text": "b", "intent": "card"}, {"text": "c", "intent": "lost"}))
    assert (named.columns, named.labels) == ({"label": "intent"}, ("card", "lost"))
    both = look(written(tmp_path, *({"text": "a", "label": name} for name in ("caf\u00e9", "cafe\u0301 ", "bar"))))
    assert both.labels == ("bar", "caf\u00e9"), "of the same characters in both forms of Unicode there is one"
    said = look(written(tmp_path, {"q": "a", "label": 0}, {"q": "b", "label": "1"}), columns={"text": "q"})
    assert (said.columns, said.labels) == ({"text": "q"}, 2)


def test_rows_of_agents_count_with_their_labels(tmp_path: Path) -> None:
    held_out = written(tmp_path, {"text": "a", "intent": "lost"}, {"text": "b", "intent": "card"})
    train = tmp_path / "train.csv"
    train.write_text("text,intent\na,pin\nb,lost\nc,lost\n")
    count = recipe_facts.counting("text-classification", None, {})
    found = recipe_facts.rows_of(held_out, "text-classification", {}, None, count, "held-out.jsonl", None, train)
    assert (found.labels, found.held_out, found.rows_of_agents) == (("card", "lost", "pin"), 2, 3)
    assert recipe_facts.rows_of(held_out, "text-classification", {}, None, count, "held-out.jsonl", 50, train).rows_of_agents == 50
    train.write_text("words,intent\na,pin\n")
    with pytest.raises(DataError, match=r"train\.csv lacks"):
        recipe_facts.rows_of(held_out, "text-classification", {}, None, count, "held-out.jsonl", None, train)


def test_labels_of_unequal_shares_are_spoken_of(tmp_path: Path) -> None:
    """The usual loss makes logits of balanced labels: where all agents have the same unequal shares, that costs accuracy."""
    for often, spoken in ((7, True), (5, False)):
        found = look(written(tmp_path, *({"text": "a", "label": int(i >= often)} for i in range(10))))
        assert found.commonest == often / 10
        assert (
            "label_skew: none" in written_recipe(recipe("r", "text-classification", BERT, found), BERT, found, 6, counted=True)
        ) == spoken


def test_texts_of_language_models_are_found(tmp_path: Path) -> None:
    asked = look(written(tmp_path, {"question": "why", "answer": "because"}), "causal-lm")
    assert (asked.columns, asked.is_text, asked.labels) == ({"prompt": "question", "completion": "answer"}, False, None)
    assert look(written(tmp_path, {"text": "once upon a time"}), "causal-lm").is_text
    with pytest.raises(DataError, match="--column"):
        look(written(tmp_path, {"question": "why"}), "causal-lm")


def test_questions_are_found(tmp_path: Path) -> None:
    row = {"query": "how many", "passage": "there were 308 of them", "answers": {"text": ["308"], "answer_start": [11]}}
    found = look(written(tmp_path, row, row), "extractive-qa")
    assert (found.columns, found.labels, found.held_out) == ({"question": "query", "context": "passage"}, None, 2)
    assert found.length > len((row["query"] + " " + row["passage"]).split()), "question and context count"
    with pytest.raises(DataError, match="row 1"):
        look(written(tmp_path, {**row, "answers": {"text": ["309"], "answer_start": [11]}}), "extractive-qa")


@pytest.mark.parametrize(("made", "labels", "why"), [
    ([], None, "no rows"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": 0}], None, "one label only"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], None, "one label only"),
    ([{"text": "a", "label": 1}, {"text": "b", "label": 2}], None, "count from 0"),
    ([{"text": "a", "label": -1}, {"text": "b", "label": 2}], None, "count from 0"),
    ([{"text": "a", "label": 0.0}, {"text": "b", "label": 3.25}], None, "3.25, which is no label"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": 5}], 3, "more labels than --labels 3"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], 3, "a row of each label"),
    ([{"text": "a", "label": 0}, {"text": " ", "label": 1}], None, "row 2: column 'text' must be text"),
    ([{"text": "a", "label": 0}, {"text": "b"}], None, "row 2"),
    ([{"text": "a", "label": [1]}], None, "holds no label"),
    ([{"words": "a", "label": 0}, {"words": "b", "label": 1}], None, "--column"),
    ([{"text": f"row {i}", "label": f"row {i}"} for i in range(1002)], None, "is that the label"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": 10**30}], None, "that is no number of a label"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": 10**30}], 5, "that is no number of a label"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": 500}], None, "say how many labels there are with --labels"),
    ([{"text": "a", "label": "x" * 10_001}, {"text": "b", "label": "y"}], None, "has 10,001 characters"),
    ([{"text": "a", "label": "no"}, {"text": "b", "label": 1}], None, "row 2: the label is a number, 1, and row 1 has a name, 'no'"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": "yes"}], None, "row 2: the label is a name, 'yes', and row 1 has a number, 0"),
])  # fmt: skip
def test_rows_that_no_run_could_use_are_refused(tmp_path: Path, made: list[dict[str, Any]], labels: int | None, why: str) -> None:
    with pytest.raises(DataError, match=why):
        look(written(tmp_path, *made), labels=labels)


def test_columns_that_nothing_is_read_from_are_known(tmp_path: Path) -> None:
    told = written(tmp_path, {"instruction": "add", "input": "1 and 2", "output": "3"})
    assert look(told, "causal-lm").unused == ("input",)
    assert look(told, "causal-lm", {"text": "input"}).unused == ("instruction", "output")
    both = look(written(tmp_path, {"text": "1 and 2 is 3", "question": "add", "answer": "3"}), "causal-lm")
    assert (both.columns, both.unused) == ({}, ("question", "answer"))
    said = look(written(tmp_path, {"text": "1", "ask": "add", "answer": "3"}), "causal-lm", {"prompt": "ask"})
    assert (said.columns, said.unused) == ({"prompt": "ask", "completion": "answer"}, ("text",))
    assert look(written(tmp_path, {"text": "a", "label": 0}, {"text": "b", "label": 1})).unused == ()


def test_names_here_and_numbers_there_are_not_the_labels_of_one_run(tmp_path: Path) -> None:
    held_out = written(tmp_path, {"text": "a", "label": "no"}, {"text": "b", "label": "yes"})
    train = tmp_path / "train.csv"
    train.write_text("text,label\na,0\nb,1\n")
    with pytest.raises(DataError, match=r"train\.csv: every label is a number, and held-out\.jsonl has names"):
        look(held_out, train=train)


def test_a_name_may_be_a_number_where_others_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,1\nb,2\nc,none\n")
    assert look(path).labels == ("1", "2", "none")


def test_a_parquet_file_that_names_its_numbers_gives_a_run_their_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    about = {"info": {"features": {"label": {"names": ["yes", "no", "unsure"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [0, 1, 1]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    assert look(path).labels == ("yes", "no", "unsure")
    assert look(path, labels=5).labels == 5


def test_a_recipe_looks_at_the_model_as_the_task_has_it(bert: Path, llama: Path) -> None:
    found = recipe_facts.model_of("bert", recipe_facts.config_of(bert), "text-classification", 3)
    assert found.blocks[-2:] == ("pooler", "head")
    assert (found.layers, found.width) == (2, 32)
    assert recipe_facts.model_of("llama", recipe_facts.config_of(llama), "causal-lm", None).blocks[0] == "embeddings"
    with pytest.raises(Exception, match="encoder"):
        recipe_facts.model_of("bert", recipe_facts.config_of(bert), "causal-lm", None)


def test_what_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json"):
        recipe_facts.config_of(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(DataError, match="no JSON object"):
        recipe_facts.config_of(tmp_path)
