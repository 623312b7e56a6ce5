"""Models that are added: their shards are the checkpoint, split and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy import select

from fedcybgd.client.client import Client
from fedcybgd.coordinator.db.models import Event
from fedcybgd.shared.files.safetensors_header import Header, copy_tensor, read_header
from tests.support import models
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, operator, refused, run_file, settled, shard_tensors, together

Raw = dict[str, tuple[str, tuple[int, ...], bytes]]


def raw_tensors(path: Path, header: Header) -> Raw:
    with path.open("rb") as file:
        return {name: (t.dtype, t.shape, b"".join(copy_tensor(file, header, name))) for name, t in header.tensors.items()}


def checkpoint(folder: Path) -> Raw:
    tensors: Raw = {}
    for path in folder.glob("*.safetensors"):
        tensors |= raw_tensors(path, read_header(path))
    # The names of the base model, whatever class the checkpoint was saved from.
    return {name.removeprefix("model.").removeprefix("transformer."): value for name, value in tensors.items()}


def shards(live: LiveCoordinator, model: Any) -> dict[str, Raw]:
    paths = {b["name"]: live.store.path(b["digest"]) for b in model["blocks"]}
    return {name: raw_tensors(path, read_header(path)) for name, path in paths.items()}


def llama_untied(folder: Path) -> Path:
    return models.tiny_llama(folder, tied=False)


def llama_of_twelve(folder: Path) -> Path:
    return models.tiny_llama(folder, layers=12)


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (models.tiny_bert, ["embeddings", "layers.0", "layers.1", "pooler"]),
        (models.tiny_gpt2, ["embeddings", "layers.0", "layers.1", "norm"]),
        (models.tiny_llama, ["embeddings", "layers.0", "layers.1", "norm"]),
        (llama_untied, ["embeddings", "layers.0", "layers.1", "norm", "head"]),
        (llama_of_twelve, ["embeddings", *(f"layers.{i}" for i in range(12)), "norm"]),
    ],
)
def test_shards_are_a_partition_of_the_checkpoint_byte_for_byte(
    live: LiveCoordinator, tmp_path: Path, make: Callable[[Path], Path], blocks: list[str]
) -> None:
    folder = make(tmp_path / "model")
    model = live.add_model(fresh("model"), folder)
    assert [b["name"] for b in model["blocks"]] == blocks
    assert model["left_out"] == []
    parts = shards(live, model)
    assert sum(len(part) for part in parts.values()) == len({name for part in parts.values() for name in part})
    assert {name: value for part in parts.values() for name, value in part.items()} == checkpoint(folder)
    for block in model["blocks"]:
        assert block["size"] == live.store.size(block["digest"])
    for name, part in parts.items():
        layer = f".{name.removeprefix('layers.')}."
        assert all(layer in tensor for tensor in part) == name.startswith("layers.")


def test_a_tied_head_belongs_to_the_embeddings_alone(live: LiveCoordinator, llama: Path, gpt2: Path) -> None:
    for folder, embedding in ((llama, "embed_tokens.weight"), (gpt2, "wte.weight")):
        parts = shards(live, live.add_model(fresh("tied"), folder))
        assert embedding in parts["embeddings"]
        assert not [name for part in parts.values() for name in part if "lm_head" in name]


def test_a_checkpoint_in_several_files_gives_the_same_shards(live: LiveCoordinator, llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole, folder = live.add_model(fresh("whole"), llama), models.tiny_llama(tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(folder, max_shard_size="20KB")
    assert len(set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())) > 2
    parts = live.add_model(fresh("sharded"), folder)
    assert [b["digest"] for b in parts["blocks"]] == [b["digest"] for b in whole["blocks"]]


def test_a_head_of_another_task_is_left_out_and_named(live: LiveCoordinator, bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = models.tiny_bert(tmp_path / "with-head")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"cls.predictions.bias": torch.zeros(100)}, folder / "model.safetensors")
    model = live.add_model(fresh("headed"), folder)
    assert model["left_out"] == ["cls.predictions.bias"]
    assert [b["digest"] for b in model["blocks"]] == [b["digest"] for b in live.add_model(fresh("plain"), bert)["blocks"]]


def test_bf16_stays_until_a_block_is_trained_and_is_float32_from_then_on(live: LiveCoordinator, llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = models.tiny_llama(tmp_path / "bf16")
    AutoModelForCausalLM.from_pretrained(llama).to(torch.bfloat16).save_pretrained(folder)
    model, hand = live.add_model(fresh("bf16"), folder), Hand(live)
    assert {t.dtype for b in model["blocks"] for t in shard_tensors(live, b["digest"]).values()} == {torch.bfloat16}

    spec = run_file(model["name"], [hand], task={"kind": "causal-lm", "max_length": 32}, schedule={"blocks": ["layers"], "always": []})
    run = live.create_run(spec, start=True)
    before = {b["name"]: b["digest"] for b in run["blocks"]}
    assert before == {b["name"]: b["digest"] for b in model["blocks"]}
    small = hand.delta(assignment := hand.take(run["name"]), 1e-5)
    hand.deliver(assignment, small)
    hand.take(run["name"])  # the next round is open: the first is applied

    after = {b["name"]: b["digest"] for b in settled(live, run["name"])["blocks"]}
    assert {name for name in after if after[name] != before[name]} == {"layers.0"}
    base, trained = shard_tensors(live, before["layers.0"]), shard_tensors(live, after["layers.0"])
    assert {t.dtype for t in trained.values()} == {torch.float32}
    for name, tensor in trained.items():
        assert torch.equal(tensor, base[name].float() + small[name])


def test_a_taken_name_is_refused_and_the_model_stays(live: LiveCoordinator, model: str, gpt2: Path) -> None:
    before = live.operator.get(f"/models/{model}")
    refused(operator(live).post("/models", json={"name": model, "source": str(gpt2)}), 409, "model_name_taken")
    assert live.operator.get(f"/models/{model}") == before


def test_one_name_asked_for_by_eight_at_once_is_imported_once(live: LiveCoordinator, bert: Path) -> None:
    name = fresh("wanted")
    answers = together(8, lambda _: operator(live).post("/models", json={"name": name, "source": str(bert)}))
    assert sorted(a.status_code for a in answers) == [202] + [409] * 7, [a.text for a in answers]
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"model_name_taken"}


def test_an_unknown_model_is_not_there(live: LiveCoordinator) -> None:
    refused(operator(live).get("/models/nobody-added-this"), 404, "not_found")


def test_what_was_found_in_a_tokenizer_is_told(live: LiveCoordinator, bert: Path, tmp_path: Path) -> None:
    name = fresh("noted")
    (tmp_path / name).symlink_to(bert)
    assert Client(live.url, live.operator_key).models.add(tmp_path / name).name == name, "a link is called as it was given"
    with live.database.transaction() as session:
        [message] = session.scalars(select(Event.message).where(Event.code == "tokenizer_note", Event.message.contains(f"model {name}:")))
    assert "does not know: " in message
    assert "Cyrillic" in message
