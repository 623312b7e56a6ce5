"""`fedcoord init` writes a run file that `run create` takes: from a directory alone, or from a model that the coordinator has."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedcybgd import Client
from fedcybgd.coordinator.cli import app
from fedcybgd.shared.contract.errors import FedError
from tests.support import models, pictures
from tests.support.live import LiveCoordinator
from tests.support.visits import fresh


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_vit(tmp_path_factory.mktemp("vit"))


def init(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, words)])


def held_out(folder: Path, task: str) -> Path:
    path = folder / "data" / "held-out.jsonl"
    path.parent.mkdir(exist_ok=True)
    if task == "image-classification":
        return pictures.parquet(path.with_suffix(".parquet"), pictures.rows(8))
    made = [{"question": f"my card is lost {i}", "answer": "please wait", "intent": ["lost", "card"][i % 2]} for i in range(8)]
    if task == "extractive-qa":
        made = [
            {"question": f"which card {i}", "context": f"card {i}", "answers": {"text": ["card"], "answer_start": [0]}} for i in range(8)
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize(
    ("task", "checkpoint"),
    [("text-classification", "bert"), ("causal-lm", "llama"), ("extractive-qa", "bert"), ("image-classification", "vit")],
)
def test_what_it_writes_is_a_run(
    live: LiveCoordinator, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str, checkpoint: str
) -> None:
    monkeypatch.delenv("FEDCOORD_URL", raising=False)
    directory = tmp_path / f"my {fresh(checkpoint)}"
    directory.symlink_to(request.getfixturevalue(checkpoint))
    data, out = held_out(tmp_path, task), tmp_path / "run.yaml"
    words = ("--task", task, "--data", data, "--out", out, "--model")
    done = init(*words, directory)
    assert done.exit_code == 0, done.output
    before = out.read_text()
    assert f"data/{data.name}" in before, "relative to the run file"
    assert f"\n  fedcoord models add '{directory}'\n" in done.output, "can be pasted"
    refused = init(*words, directory)
    assert isinstance(refused.exception, FedError)
    assert refused.exception.code == "file_there"
    assert out.read_text() == before

    client = Client(live.url, live.operator_key)
    name = client.models.add(directory).name  # as the command that was said would
    run = client.runs.create(out)
    assert run.prepared
    client.runs.cancel(run.id)

    monkeypatch.setenv("FEDCOORD_URL", live.url)
    monkeypatch.setenv("FEDCOORD_OPERATOR_KEY", live.operator_key)
    assert init(*words, name, "--force").exit_code == 0
    values = [line.partition("  #")[0].rstrip() for line in out.read_text().splitlines()]
    same = [line.partition("  #")[0].rstrip() for line in before.splitlines()]
    assert [v for v in values if "max_length" not in v] == [v for v in same if "max_length" not in v], (
        "but for the tokenizer, which is not asked"
    )
    run = client.runs.create(out)
    assert run.prepared
    client.runs.cancel(run.id)
    corrected = init(*words, name, "--force", "--corrections")
    if task in ("text-classification", "causal-lm"):
        assert client.runs.create(out).prepared
        assert "\ncorrections:\n  rank: 4 " in out.read_text()
    else:
        assert isinstance(corrected.exception, FedError)
        assert "--corrections: they were measured with" in corrected.exception.message


def test_what_is_no_model_is_refused(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDCOORD_URL", live.url)
    monkeypatch.setenv("FEDCOORD_OPERATOR_KEY", live.operator_key)
    words = ("--task", "causal-lm", "--data", held_out(tmp_path, "causal-lm"), "--out", tmp_path / "run.yaml", "--model")
    for model, why in (("nowhere/at/all", "no directory"), ("nobody", "no model"), (str(tmp_path), "config.json")):
        done = init(*words, model)
        assert isinstance(done.exception, FedError), done.output
        assert why in str(done.exception)
    assert not (tmp_path / "run.yaml").exists()


def test_what_a_coordinator_would_refuse_is_refused_before_a_run_file_is_written(bert: Path, tmp_path: Path) -> None:
    words = (
        "--task",
        "text-classification",
        "--data",
        held_out(tmp_path, "text-classification"),
        "--out",
        tmp_path / "run.yaml",
        "--model",
    )
    for gone, why in ((["tokenizer.json", "tokenizer_config.json"], "no tokenizer"), (["model.safetensors"], "pickled weights")):
        model = shutil.copytree(bert, tmp_path / why.replace(" ", "-"), ignore=shutil.ignore_patterns(*gone))
        if "model.safetensors" in gone:
            (model / "pytorch_model.bin").write_bytes(b"x")
        done = init(*words, model)
        assert isinstance(done.exception, FedError), done.output
        assert why in str(done.exception)
    assert not (tmp_path / "run.yaml").exists()
