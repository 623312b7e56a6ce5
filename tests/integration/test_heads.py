"""A head is compared by its shape: what fits is kept, what does not is made afresh and said, and nothing is left random for ever."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.test_export import export
from tests.support import models
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, operator, refused, run_file, settled, shard_tensors


def task(labels: Any) -> dict[str, Any]:
    return {"kind": "text-classification", "labels": labels, "max_length": 32}


def classifier(live: LiveCoordinator, folder: Path, labels: list[str]) -> str:
    """The result of a run, added as a model: a BERT with a trained head for `labels`."""
    from transformers import AutoModelForSequenceClassification

    base = models.tiny_bert(folder)
    names = dict(enumerate(labels))
    config = {"num_labels": len(labels), "id2label": names, "label2id": {v: k for k, v in names.items()}}
    AutoModelForSequenceClassification.from_pretrained(base, **config).save_pretrained(base)
    name: str = live.add_model(fresh("classifier"), base)["name"]
    return name


@pytest.fixture
def sentiment(live: LiveCoordinator, tmp_path: Path) -> str:
    return classifier(live, tmp_path / "sentiment", ["bad", "good"])


def head_of(live: LiveCoordinator, run: Any) -> dict[str, torch.Tensor]:
    return shard_tensors(live, next(b["digest"] for b in run["blocks"] if b["name"] == "head"))


def test_another_number_of_labels_makes_a_fresh_head_and_says_so(live: LiveCoordinator, sentiment: str, hand: Hand) -> None:
    spec = run_file(sentiment, [hand], task=task(5), schedule={"blocks": ["layers"], "always": ["head"]})
    run = live.create_run(spec)
    assert run["notes"] == [
        "head holds fresh, random weights (classifier.weight [5, 32] where the model has [2, 32], "
        "classifier.bias [5] where the model has [2])"
    ]
    assert head_of(live, run)["classifier.weight"].shape == (5, 32)
    live.operator.post(f"/runs/{run['id']}/start")
    for _ in range(2):
        hand.deliver(hand.take(run["name"]))
    after = settled(live, run["name"])
    assert after["state"] == "completed"
    assert after["notes"] == run["notes"]


@pytest.mark.parametrize("always", [[], ["pooler"]])
def test_a_fresh_head_that_nothing_trains_is_refused_with_advice(live: LiveCoordinator, sentiment: str, always: list[str]) -> None:
    run = live.create_run(run_file(sentiment, "all", task=task(5), schedule={"blocks": ["layers"], "always": always}))
    assert run["state"] == "failed"
    assert "`always: [head]`" in run["reason"]
    assert "[5, 32] where the model has [2, 32]" in run["reason"]


def test_a_head_that_fits_is_kept_and_other_names_of_labels_are_said(live: LiveCoordinator, sentiment: str) -> None:
    kept = live.create_run(run_file(sentiment, "all", task=task(["bad", "good"]), schedule={"blocks": ["layers"], "always": []}))
    renamed = live.create_run(run_file(sentiment, "all", task=task(["ham", "spam"]), schedule={"blocks": ["layers"], "always": []}))
    assert kept["notes"] == []
    assert renamed["notes"] == ["head is the model's own, whose labels were bad, good; the run's are ham, spam, in this order"]
    assert [b["digest"] for b in kept["blocks"]] == [b["digest"] for b in renamed["blocks"]]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "a "], "'a' is there twice"),
        (["caf\u00e9", "cafe\u0301"], "is there twice"),
        (["", "b"], "'' is no name"),
        (["a\nb", "c"], "no name"),
    ],
)
def test_names_of_labels_that_rows_could_not_tell_apart_are_refused(
    live: LiveCoordinator, model: str, labels: list[str], said: str
) -> None:
    """One organisation writes an accent as a character of its own, another does not: they mean one label."""
    asked = operator(live).post("/runs", json=run_file(model, "all", task=task(labels)))
    assert said in refused(asked, 422, "run_file_invalid").message


def test_a_run_goes_on_from_the_result_of_another_with_other_labels(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    schedule = {"blocks": ["layers"], "always": ["pooler", "head"]}
    admission = {"max_relative_norm": None}
    first = live.create_run(run_file(model, [hand], task=task(["a", "b", "c"]), schedule=schedule, admission=admission), start=True)["name"]
    for _ in range(2):
        hand.deliver(hand.take(first))
    settled(live, first)
    result = export(live, first, tmp_path / "result")

    again = live.add_model(fresh("result"), result)
    assert again["left_out"] == []
    second = live.create_run(run_file(again["name"], [hand], task=task(["x", "y"]), schedule=schedule, admission=admission), start=True)
    before = load_file(result / "model.safetensors")
    assert all(torch.equal(t, before[f"bert.{name}"]) for b in second["blocks"] if b["name"] != "head"
               for name, t in shard_tensors(live, b["digest"]).items())  # fmt: skip
    for _ in range(2):
        hand.deliver(hand.take(second["name"]))
    settled(live, second["name"])
    loaded = AutoModelForSequenceClassification.from_pretrained(export(live, second["name"], tmp_path / "second"))
    assert loaded.config.id2label == {0: "x", 1: "y"}
    assert loaded.classifier.weight.shape == (2, 32)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "xlm-roberta"])
def test_an_encoder_is_refused_for_causal_lm(live: LiveCoordinator, tmp_path: Path, family: str) -> None:
    import transformers

    sizes = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **sizes, max_position_embeddings=40))
    models.word_piece(tmp_path)
    model.save_pretrained(tmp_path)
    name = live.add_model(fresh(family), tmp_path)["name"]
    spec = run_file(name, "all", task={"kind": "causal-lm", "max_length": 16}, schedule={"blocks": ["layers"], "always": ["head"]})
    run = live.create_run(spec)
    assert run["state"] == "failed"
    assert "is an encoder" in run["reason"]


def test_what_a_configuration_says_of_the_task_loses_against_the_run(live: LiveCoordinator, bert: Path, tmp_path: Path) -> None:
    import json

    from transformers import AutoModelForSequenceClassification

    from tests.support.visits import copy_of

    folder = copy_of(bert, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    odd = {
        "problem_type": "regression", "num_labels": 1, "id2label": {"0": "score"}, "return_dict": False, "output_attentions": True,
        "torch_dtype": "bfloat16", "use_cache": True, "gradient_checkpointing": True, "chunk_size_feed_forward": 5, "finetuning_task": "stsb",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | odd))
    name = live.add_model(fresh("odd"), folder)["name"]
    run = live.create_run(run_file(name, "all", task=task(["a", "b", "c"]), schedule={"blocks": ["layers"], "always": ["head"]}))
    exported = export(live, run["name"], tmp_path / "export")
    written = json.loads((exported / "config.json").read_text())
    of_one_call = {"return_dict", "output_attentions", "gradient_checkpointing", "chunk_size_feed_forward"}
    assert not (of_one_call | {"torch_dtype", "finetuning_task"}) & written.keys()
    loaded = AutoModelForSequenceClassification.from_pretrained(exported)
    assert (loaded.config.problem_type, loaded.config.num_labels, loaded.config.id2label[2]) == ("single_label_classification", 3, "c")
    assert loaded.dtype == torch.float32


def test_a_block_that_the_task_never_uses_is_not_visited(live: LiveCoordinator, tmp_path: Path) -> None:
    """BigBird's classifier reads the hidden states themselves; its pooler stays, and learns nothing."""
    import transformers

    sizes = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    settings = transformers.BigBirdConfig(**sizes, max_position_embeddings=40, attention_type="original_full")
    transformers.BigBirdModel(settings, add_pooling_layer=False).save_pretrained(tmp_path)
    models.word_piece(tmp_path)
    name = live.add_model(fresh("bigbird"), tmp_path)["name"]
    made = {blocks: live.create_run(run_file(name, "all", task=task(3), schedule={"blocks": [blocks], "always": ["head"]}))
            for blocks in ("all", "pooler")}  # fmt: skip
    assert [block["name"] for block in made["all"]["blocks"]] == ["embeddings", "layers.0", "layers.1", "pooler", "head"]
    assert made["all"]["rounds_total"] == 3
    assert made["pooler"]["state"] == "failed"
    assert "pooler has no part in text-classification with this model" in made["pooler"]["reason"]
