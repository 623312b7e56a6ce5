"""Whoever supplies a model directory gets nothing read that is not in it, nothing run, and an answer at once."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload, ImportResult
from fedcybgd.coordinator.engine.import_model import import_model
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.models.assembly import ModelUnknown, skeleton
from fedcybgd.shared.models.model_classes import settings_of
from tests.support.visits import copy_of

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 437985387\n"


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    return copy_of(bert, tmp_path / "model")


@pytest.fixture
def add(tmp_path: Path) -> Callable[[Path], ImportResult]:
    return lambda source: import_model(LocalBlobStore(tmp_path / "blobs"), ImportPayload(source=str(source)))


def refused(add: Callable[[Path], ImportResult], folder: Path, code: str = "model_refused") -> str:
    with pytest.raises(FedError) as caught:
        add(folder)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    return caught.value.message


def edit(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def stored(tmp_path: Path, result: ImportResult, name: str) -> bytes:
    return (LocalBlobStore(tmp_path / "blobs").path(next(f.digest for f in result.files if f.name == name))).read_bytes()


@pytest.mark.parametrize("name", ["vocab.txt", "merges.txt", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_link_that_leads_out_is_refused(folder: Path, tmp_path: Path, name: str, add: Callable[[Path], ImportResult]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    assert name in refused(add, folder)


@pytest.mark.parametrize("target", ["/proc/self/environ", "/dev/zero", "/etc", "../elsewhere", "/no/such/file"])
def test_what_is_no_file_of_the_directory_is_refused(folder: Path, target: str, add: Callable[[Path], ImportResult]) -> None:
    (folder / "merges.txt").symlink_to(target)
    assert "merges.txt" in refused(add, folder)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path, add: Callable[[Path], ImportResult]) -> None:
    os.mkfifo(folder / "vocab.txt")
    assert "no regular file" in refused(add, folder)


def test_links_inside_the_directory_and_to_the_blobs_of_the_hub_are_followed(
    bert: Path, tmp_path: Path, add: Callable[[Path], ImportResult]
) -> None:
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(bert.iterdir())):
        (cache / "blobs" / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert add(snapshot).blocks == add(bert).blocks
    (snapshot / "vocab.txt").symlink_to("../../../outside")
    (tmp_path / "outside").write_text("x")
    assert "vocab.txt" in refused(add, snapshot)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_git_lfs_pointer_is_called_by_its_name(folder: Path, name: str, add: Callable[[Path], ImportResult]) -> None:
    (folder / name).write_text(POINTER)
    said = refused(add, folder)
    assert "git-lfs" in said
    assert name in said


def test_a_text_file_has_a_limit(folder: Path, add: Callable[[Path], ImportResult]) -> None:
    with (folder / "vocab.txt").open("wb") as file:
        file.truncate(200 << 20)
    assert "vocab.txt has 209,715,200 bytes" in refused(add, folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"text_config": {"model_type": "rag", "auto_map": {"AutoConfig": "evil.Config"}}}),
        ("config.json", {"parts": [{"deep": {"auto_map": {}}}]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        ("tokenizer_config.json", {"inner": {"auto_map": {"AutoTokenizer": ["evil.T", None]}}}),
    ],
)
def test_code_of_its_own_is_refused_at_every_depth(
    folder: Path, name: str, values: dict[str, Any], add: Callable[[Path], ImportResult]
) -> None:
    edit(folder, name, **values)
    said = refused(add, folder)
    assert "auto_map" in said
    assert name in said


def test_a_skeleton_never_asks_whether_to_run_code() -> None:
    config = {"model_type": "fuyu", "text_config": {"model_type": "rag", "auto_map": {"AutoConfig": "evil.Config"}}}
    with pytest.raises(ModelUnknown, match="auto_map"):
        skeleton(config, "causal-lm")


def test_fields_that_choose_code_or_files_are_dropped(folder: Path, tmp_path: Path, add: Callable[[Path], ImportResult]) -> None:
    edit(folder, attn_implementation="kernels-community/x", _attn_implementation="kernels-community/x", use_kernels=True)
    edit(folder, "tokenizer_config.json", vocab_file="/etc/passwd", tokenizer_file="/etc/passwd")
    result = add(folder)
    assert not {"attn_implementation", "_attn_implementation", "use_kernels"} & result.config.keys()
    assert b"passwd" not in stored(tmp_path, result, "tokenizer_config.json")
    assert stored(tmp_path, result, "tokenizer.json") == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["Trainer", "pipeline", "set_seed", "PreTrainedModel.from_pretrained", "BertConfig"])
def test_an_architecture_that_is_no_model_is_not_called(folder: Path, name: str, add: Callable[[Path], ImportResult]) -> None:
    edit(folder, architectures=[name])
    assert [b.name for b in add(folder).blocks] == ["embeddings", "layers.0", "layers.1", "pooler"]


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 6000},
        {"num_hidden_layers": 500},
        {"vocab_size": 10**12},
        {"max_position_embeddings": 10**10},
        {"hidden_size": -2},
        {"inner": {"num_hidden_layers": 10**9}},
        {"hidden_dropout_prob": math.nan},
        {"layer_norm_eps": {"__float__": "NaN"}},
        {"inner": [{"x": math.nan}]},
        {"attention_dropout": 1.5},
        {"hidden_dropout_prob": {"__float__": "Infinity"}},
        {"classifier_dropout": -0.1},
    ],
)
def test_numbers_that_no_model_has_are_refused_at_once(folder: Path, values: dict[str, Any], add: Callable[[Path], ImportResult]) -> None:
    edit(folder, **values)
    began = time.monotonic()
    assert next(iter(values)) in refused(add, folder) or "inner" in values
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "values", [{"hidden_act": "nobody"}, {"num_attention_heads": 0}, {"hidden_size": None}, {"hidden_size": "32"}, {"note": "\ud83d"}]
)
def test_nonsense_in_a_configuration_is_one_line(folder: Path, values: dict[str, Any], add: Callable[[Path], ImportResult]) -> None:
    edit(folder, **values)
    refused(add, folder, "model_unknown")


@pytest.mark.parametrize("written", [{"__float__": "Infinity"}, math.inf])
def test_infinity_in_a_configuration_is_kept(folder: Path, written: Any, add: Callable[[Path], ImportResult]) -> None:
    """Granite 4, Falcon-H1 and Mamba 2 have it; transformers 4 wrote it as no JSON has it, transformers 5 as an object."""
    limits = {"vocab_size": 100, "max_position_embeddings": 64, "num_local_experts": 0, "layer_types": ["attention"] * 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16}
    settings = transformers.GraniteMoeHybridConfig(**limits, **sizes, **mamba)
    transformers.GraniteMoeHybridForCausalLM(settings).save_pretrained(folder)
    edit(folder, time_step_limit=[0.0, written])
    answer = ImportResult.model_validate_json(add(folder).model_dump_json())
    assert answer.config["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert list(settings_of(answer.config).time_step_limit) == [0.0, math.inf]


@pytest.mark.parametrize("nothing", [{}, None])
def test_what_says_nothing_of_quantization_is_left_out(folder: Path, nothing: Any, add: Callable[[Path], ImportResult]) -> None:
    """transformers takes a model for a quantized one because the field is there, and then finds no method in it."""
    edit(folder, quantization_config=nothing)
    assert "quantization_config" not in add(folder).config


def test_an_adapter_is_called_by_its_name(folder: Path, add: Callable[[Path], ImportResult]) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "merge it first" in refused(add, folder)


def test_weights_are_the_files_that_transformers_loads(folder: Path, add: Callable[[Path], ImportResult]) -> None:
    (folder / "training_state.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "absent.safetensors"}}')
    whole = add(folder)
    assert len(whole.blocks) == 4
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(folder / "parts" / "weights.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "parts/weights.safetensors"}}')
    assert [block.digest for block in add(folder).blocks] == [block.digest for block in whole.blocks]
    (folder / "parts" / "weights.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "absent.safetensors"}}')
    assert "absent.safetensors" in refused(add, folder)
    for name in ("../weights.safetensors", "parts/../weights.safetensors", str(folder / "weights.safetensors"), "./weights.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        assert "no name of a file in this directory" in refused(add, folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "neither model.safetensors nor" in refused(add, folder)
    (folder / "weights.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert len(add(folder).blocks) == 4
