"""What a run ends in: held-out figures that anybody can check with transformers alone, and a directory that it loads."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedcybgd import Client
from fedcybgd.client.comparison import compared
from fedcybgd.client.exports import download
from fedcybgd.coordinator.commands.compare import rows
from fedcybgd.shared.contract.digests import digest_of, digest_of_file
from tests.support import models
from tests.support.browser import logged_in
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, finish, operator, refused, run_file, settled, shard_tensors, start_run

ROWS = [
    {"text": f"{a} {b} {c}", "label": i % 3}
    for i, (a, b, c) in enumerate(zip(models.WORDS, models.WORDS[3:], models.WORDS[9:], strict=False))
]
LINES = [{"text": " ".join(models.WORDS[i : i + 7])} for i in range(12)]


def upload(live: LiveCoordinator, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    path = folder / "held-out.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"held_out": path.name, "digest": Client(live.url, live.operator_key).runs.upload_held_out(path)}


def export(live: LiveCoordinator, run: str, target: Path) -> Path:
    made = live.operator.post(f"/runs/{run}/exports")["export_id"]
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}/exports/{made}"))["ready"] and v)
    target.mkdir()
    for file in view["files"]:
        download(live.operator, f"/runs/{run}/exports/{made}/{file['name']}", target / file["name"], file["digest"], file["size"])
        assert (target / file["name"]).stat().st_size == file["size"]
    return target


def same_tensors(live: LiveCoordinator, run: str, folder: Path, prefix: str) -> None:
    """The exported tensors are those of the present shards, no more and no fewer."""
    blocks = live.operator.get(f"/runs/{run}")["blocks"]
    shards = {name: t for b in blocks for name, t in shard_tensors(live, b["digest"]).items()}
    exported = {name.removeprefix(prefix): t for name, t in load_file(folder / "model.safetensors").items()}
    assert exported.keys() == shards.keys()
    assert all(exported[name].dtype == t.dtype and torch.equal(exported[name], t) for name, t in shards.items())


def test_an_exported_classifier_scores_what_the_coordinator_said(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = start_run(
        live, model, [hand], evaluate=upload(live, ROWS, tmp_path) | {"every": "round"},
        task={"kind": "text-classification", "labels": ["lost", "top-up", "other"], "max_length": 32},
        admission={"max_relative_norm": None}, schedule={"blocks": ["layers"], "always": ["pooler", "head"]},
    )  # fmt: skip
    finish(live, run, [hand], scale=0.3)
    view = settled(live, run)
    assert [e["after_rounds"] for e in view["evaluations"]] == [0, 1, 2]
    assert len({e["loss"] for e in view["evaluations"]}) == 3
    said = view["evaluations"][-1]

    folder = export(live, run, tmp_path / "export")
    same_tensors(live, run, folder, "bert.")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.id2label == {0: "lost", 1: "top-up", 2: "other"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = torch.tensor([row["label"] for row in ROWS])
    with torch.inference_mode():
        output = loaded.eval()(**tokenizer([row["text"] for row in ROWS], padding=True, return_tensors="pt"), labels=labels)
    assert said["rows"] == len(ROWS)
    assert said["accuracy"] == pytest.approx(float((output.logits.argmax(-1) == labels).float().mean()))
    assert said["loss"] == pytest.approx(float(output.loss), rel=1e-4)
    losses = torch.nn.functional.cross_entropy(output.logits, labels, reduction="none")
    assert said["loss_error"] == pytest.approx(float(losses.std()) / len(ROWS) ** 0.5, rel=1e-3)
    assert said["majority"] == max(int((labels == label).sum()) for label in range(3)) / len(ROWS)

    visits = live.operator.get(f"/runs/{run}/assignments")
    spent = said["spent"]
    assert spent["tokens"] == sum(visit["metrics"]["tokens"] for visit in visits) > 0
    assert (spent["bytes_down"], spent["bytes_up"]) == (view["bytes"]["down"], view["bytes"]["up"])
    assert spent["bytes_up"] > 0
    assert view["evaluations"][0]["spent"] | {"seconds": 0} == {"bytes_down": 0, "bytes_up": 0, "tokens": 0, "seconds": 0}

    (beside,) = compared(Client(live.url, live.operator_key).runs, [run, view["id"]])
    assert [score.after_rounds for score in beside.scores] == [0, 1, 2]
    assert beside.scores[-1].accuracy == said["accuracy"]
    assert beside.peak_memory_bytes is None, "this hand has not measured it"
    lines = list(csv.DictReader(",".join(map(str, row)) for row in rows([beside])))
    assert [int(line["after_rounds"]) for line in lines] == [0, 1, 2]
    assert int(lines[-1]["tokens"]) == spent["tokens"]

    page = logged_in(live).get(f"/admin/runs/{view['id']}").text
    assert f"{100 * said['accuracy']:.2f} %</b>" in page
    assert f"± {100 * said['accuracy_error']:.2f} %" in page
    assert f"commonest label always: {100 * said['majority']:.2f} %" in page

    card = (folder / "README.md").read_text()
    assert f"| 2 | {said['accuracy']:.2%} ± " in card
    assert "(base model)" in card
    assert "AutoModelForSequenceClassification" in card
    assert hand.name not in card


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_language_model_scores_what_the_coordinator_said(live: LiveCoordinator, hand: Hand, tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = live.add_model(f"export-llama-{tied}", models.tiny_llama(tmp_path / "base", tied=tied))
    spec = run_file(
        base["name"], [hand], task={"kind": "causal-lm", "max_length": 16}, evaluate=upload(live, LINES, tmp_path) | {"every": "end"},
        schedule={"blocks": ["embeddings", "layers.1"], "always": ["norm"]}, admission={"max_relative_norm": None},
    )  # fmt: skip
    run = live.create_run(spec, start=True)["name"]
    finish(live, run, [hand], scale=0.1)
    view = settled(live, run)
    assert [e["after_rounds"] for e in view["evaluations"]] == [2]
    assert view["evaluations"][-1]["accuracy"] is None

    folder = export(live, run, tmp_path / "export")
    same_tensors(live, run, folder, "model.")
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stream = [i for row in LINES for i in tokenizer(row["text"], add_special_tokens=False)["input_ids"]]
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(stream), 16):
            window = torch.tensor([stream[start : start + 16]])
            if window.shape[1] > 1:
                total += float(loaded(window, labels=window).loss) * (window.shape[1] - 1)
                count += window.shape[1] - 1
    said = view["evaluations"][-1]
    assert said["loss"] == pytest.approx(total / count, rel=1e-4)
    # The tokenizer has one token a word: a predicted one is a space and a word.
    predicted = [i for start in range(0, len(stream), 16) for i in stream[start + 1 : start + 16]]
    written = sum(1 + len(tokenizer.decode([i])) for i in predicted)
    assert said["bits_per_byte"] == pytest.approx(total / math.log(2) / written, rel=1e-4)


def test_a_draft_exports_its_base_and_a_fresh_head(live: LiveCoordinator, model: str, bert: Path, tmp_path: Path) -> None:
    run = live.create_run(run_file(model, "all"))["name"]
    exported = load_file(export(live, run, tmp_path / "export") / "model.safetensors")
    for name, tensor in load_file(bert / "model.safetensors").items():
        assert torch.equal(exported[f"bert.{name}"], tensor)
    assert exported["classifier.weight"].std() > 0


def test_an_export_is_of_the_moment_it_was_asked_for(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    made = live.operator.post(f"/runs/{run}/exports")["export_id"]
    before = wait_for(lambda: (v := live.operator.get(f"/runs/{run}/exports/{made}"))["ready"] and v)
    hand.deliver(hand.take(run))
    settled(live, run)
    assert live.operator.get(f"/runs/{run}/exports/{made}") == before
    assert before["after_rounds"] == 0


def test_an_exported_file_is_resumed_and_verified(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    run = live.create_run(run_file(model, "all"))["name"]
    folder = export(live, run, tmp_path / "first")
    made = live.operator.post(f"/runs/{run}/exports")["export_id"]
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}/exports/{made}"))["ready"] and v)
    weights = next(f for f in view["files"] if f["name"] == "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    answer = operator(live).get(f"/runs/{run}/exports/{made}/model.safetensors", headers={"Range": "bytes=1000-"})
    assert (answer.status_code, digest_of(whole[:1000] + answer.content)) == (206, weights["digest"])
    target = tmp_path / "model.safetensors"
    (tmp_path / ".model.safetensors.part").write_bytes(whole[:5000])
    download(live.operator, f"/runs/{run}/exports/{made}/model.safetensors", target, weights["digest"], weights["size"])
    assert digest_of_file(target) == weights["digest"]
    taken = [e for e in Client(live.url, live.operator_key).audit() if e.subject.endswith(f"{made} model.safetensors")]
    assert [(e.name, e.act, e.outcome) for e in taken] == [("owner", "GET /v1/runs/{run}/exports/{export_id}/{name}", "done")] * 2


def test_exports_that_are_none(live: LiveCoordinator, model: str) -> None:
    run = live.create_run(run_file(model, "all"))["name"]
    made = live.operator.post(f"/runs/{run}/exports")["export_id"]
    foreign = live.create_run(run_file(model, "all"))["name"]
    caller = operator(live)
    refused(caller.get(f"/runs/{run}/exports/job_0123456789abcdef"), 404, "not_found")
    refused(caller.get(f"/runs/{foreign}/exports/{made}"), 404, "not_found")
    refused(caller.get(f"/runs/nobody/exports/{made}"), 404, "not_found")
    settled(live, run)
    for name in ("pytorch_model.bin", "..%2f..%2fcoordinator.db"):
        refused(caller.get(f"/runs/{run}/exports/{made}/{name}"), 404, "not_found")
