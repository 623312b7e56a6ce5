"""Models that are refused: for a stable reason that names the offender, and the name stays free."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedcybgd.client.client import Client
from fedcybgd.client.errors import FileUnusable
from tests.support import models
from tests.support.live import LiveCoordinator
from tests.support.visits import copy_of, fresh, operator, refused, run_file

QUERY = "encoder.layer.1.attention.self.query.weight"


def add_bad(live: LiveCoordinator, source: Path | str, name: str | None = None) -> tuple[Any, str]:
    """The failed model, and the code that the failure was written down with."""
    name = name or fresh("bad")
    live.operator.post("/models", {"name": name, "source": str(source)})
    look = live.operator.wait(lambda: live.operator.get(f"/models/{name}"), lambda m: m["state"] != "adding", every=0.02, limit=30)
    assert look["state"] == "failed"
    assert look["blocks"] == []
    event = next(e for e in live.operator.get("/status")["last_errors"] if f"model {name} " in e["message"])
    return look, event["code"]


def no_safetensors(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
        change(found)
        save_file(found, folder / "model.safetensors")

    return rewrite


def named(rename: Callable[[str], str]) -> Callable[[dict[str, torch.Tensor]], Any]:
    def change(found: dict[str, torch.Tensor]) -> None:
        for name in list(found):
            found[rename(name)] = found.pop(name)

    return change


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def index(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink(missing_ok=True)  # it goes before an index
        (folder / "model.safetensors.index.json").write_text(text)

    return write


def moved(name: bytes) -> Callable[[Path], None]:
    """The weights under a name that is no UTF-8."""
    return lambda folder: (folder / "model.safetensors").rename(folder / os.fsdecode(name)) and None


def twice(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "first.safetensors")
    shutil.copy(folder / "first.safetensors", folder / "copy.safetensors")
    index('{"weight_map": {"x": "first.safetensors", "y": "copy.safetensors"}}')(folder)


def replaced(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (no_safetensors, "model_refused", "pytorch_model.bin is a pickle"),
        (config(auto_map={"AutoModel": "evil.Model"}), "model_refused", "auto_map"),
        (config(quantization_config={"bits": 4}), "model_refused", "quantized"),
        (config(model_type="nobody-knows-this"), "model_unknown", "nobody-knows-this"),
        (config(model_type=None), "model_refused", "model_type"),
        (config(num_attention_heads=5), "model_unknown", "hidden size"),
        (tensors(lambda t: t.pop(QUERY)), "model_refused", f"missing: {QUERY}"),
        (tensors(lambda t: t.update({"encoder.layer.7.extra": torch.ones(2)})), "model_refused", "unknown: encoder.layer.7.extra"),
        (tensors(lambda t: t.update({QUERY: torch.ones(32, 31)})), "model_refused", f"{QUERY} is F32 [32, 31], must be a float [32, 32]"),
        (tensors(lambda t: t.update({QUERY: t[QUERY].to(torch.int8)})), "model_refused", f"{QUERY} is I8"),
        (
            tensors(lambda t: t[QUERY].view(-1)[:1].fill_(float("nan"))),
            "model_refused",
            f"tensor {QUERY} holds values that are infinite or no",
        ),
        (tensors(lambda t: t.update({QUERY: (t[QUERY] + 7e4).half()})), "model_refused", f"tensor {QUERY} holds values that are infinite"),
        (tensors(lambda t: t.clear()), "model_refused", "missing: embeddings.word_embeddings.weight"),
        (tensors(named(lambda name: f"module.{name}")), "model_refused", "all names begin with 'module.': save the model that is inside"),
        (tensors(named(lambda name: f"_orig_mod.{name}")), "model_refused", "torch.compile"),
        (
            tensors(named(lambda name: name.replace("layer.1.", "layer.1._checkpoint_wrapped_module."))),
            "model_refused",
            "activation checkp",
        ),
        (tensors(named(lambda name: name.replace("query.", "query.base_layer."))), "model_refused", "merge them first"),
        (tensors(named(lambda name: f"base_model.model.{name}")), "model_refused", "merge them first"),
        (tensors(lambda t: t.update({QUERY: t[QUERY].to(torch.float8_e8m0fnu)})), "model_refused", f"it looks quantized ({QUERY})"),
        (no_tokenizer, "model_refused", "no tokenizer"),
        (cut_short, "safetensors_invalid", "model.safetensors has"),
        (replaced("model.safetensors", "not a model"), "safetensors_invalid", "is no safetensors file"),
        (replaced("config.json", "{"), "model_refused", "is no JSON"),
        (replaced("config.json", "[1]"), "model_refused", "is no JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "model_refused", "no config.json"),
        (index('{"weight_map": {"x": "absent.safetensors"}}'), "model_refused", "absent.safetensors"),
        (index('{"weight_map": {"x": "\\ud83d.safetensors"}}'), "model_refused", "missing: \N{REPLACEMENT CHARACTER}.safetensors"),
        (moved(b"\xff.safetensors"), "model_refused", "\N{REPLACEMENT CHARACTER}.safetensors, but neither model.safetensors nor"),
        (
            lambda folder: (folder / os.fsdecode(b"\xff.model")).write_bytes(b"x") and None,
            "model_refused",
            "the name of \N{REPLACEMENT CHARACTER}.model is no UTF-8",
        ),
        (index("{}"), "model_refused", "model.safetensors.index.json"),
        (index("{"), "model_refused", "model.safetensors.index.json"),
        (twice, "model_refused", "is in copy.safetensors and in first.safetensors"),
    ],
)
def test_a_spoilt_model_is_refused_for_its_reason(
    live: LiveCoordinator, bert: Path, tmp_path: Path, spoil: Callable[[Path], None], code: str, said: str
) -> None:
    folder = copy_of(bert, tmp_path / "bad")
    spoil(folder)
    model, given = add_bad(live, folder)
    assert said in model["reason"]
    assert given == code


def test_a_model_of_two_stacks_is_refused_with_both(live: LiveCoordinator, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = models.tiny_bert(tmp_path / "t5")
    T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).save_pretrained(folder)
    model, code = add_bad(live, folder)
    assert code == "model_not_partitionable"
    assert "encoder.block" in model["reason"]
    assert "decoder.block" in model["reason"]


@pytest.mark.parametrize(
    "source", ["/no/such/directory", "./relative", "~/nowhere-at-all", "plain-word", "a/b/c", "https://x.example/m", "nobody/nothing"]
)
def test_what_is_no_directory_and_no_hub_id_is_refused(live: LiveCoordinator, source: str) -> None:
    model, code = add_bad(live, source)
    assert code == "model_refused"
    assert f"{source} is no directory on the coordinator's machine, and " in model["reason"]
    assert "hub id" in model["reason"]


def test_a_file_is_no_model(live: LiveCoordinator, bert: Path) -> None:
    assert add_bad(live, bert / "config.json")[1] == "model_refused"


def test_the_code_of_a_model_is_never_run(live: LiveCoordinator, bert: Path, tmp_path: Path) -> None:
    folder, ran = copy_of(bert, tmp_path / "evil"), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    config(auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, model_type="evil")(folder)
    assert add_bad(live, folder)[1] == "model_refused"
    assert not ran.exists()


def test_a_name_whose_import_failed_can_be_used_again(live: LiveCoordinator, bert: Path) -> None:
    failed, _ = add_bad(live, "/no/such/directory")
    unready = operator(live).post("/runs", json=run_file(failed["name"], "all"))
    assert "/no/such/directory" in refused(unready, 409, "model_not_ready").message

    def told() -> str:
        return " ".join(alarm["message"] for alarm in live.operator.get("/status")["alarms"] if alarm["code"] == "models_failed")

    assert failed["name"] in told()
    model = live.add_model(failed["name"], bert)
    assert (model["reason"], model["source"], len(model["blocks"])) == (None, str(bert), 4)
    assert failed["name"] not in told()
    refused(operator(live).post("/models", json={"name": model["name"], "source": str(bert)}), 409, "model_name_taken")


def test_a_file_is_refused_before_it_waits_for_anything(live: LiveCoordinator, bert: Path) -> None:
    before = live.operator.every("/models")
    with pytest.raises(FileUnusable, match="give the directory that it lies in"):
        Client(live.url, live.operator_key).models.add(bert / "config.json", wait_s=0)
    assert live.operator.every("/models") == before


@pytest.mark.parametrize(
    "body", [{}, {"name": "a b", "source": "x"}, {"name": "x"}, {"name": "x", "source": ""}, {"name": "x", "source": "\0"}]
)
def test_a_request_that_is_none_adds_nothing(live: LiveCoordinator, body: dict[str, str]) -> None:
    before = live.operator.every("/models")
    refused(operator(live).post("/models", json=body), 422, "invalid_request")
    assert live.operator.every("/models") == before
