"""`fedcoord predict`: a run's model, an older one of it, or an exported one says of rows what the coordinator's score says; nothing is left behind."""

import json
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedcybgd import Client
from fedcybgd.coordinator.cli import app
from fedcybgd.shared.contract.errors import FedError
from tests.integration.test_export import ROWS, upload
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, finish, settled, start_run


def predict(*words: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def refused(code: str, *words: str | Path | int) -> str:
    done = predict(*words)
    assert isinstance(done.exception, FedError), done.output
    assert done.exception.code == code
    return done.exception.message


def test_a_run_its_older_model_and_its_export_are_asked(
    live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDCOORD_URL", live.url)
    monkeypatch.setenv("FEDCOORD_OPERATOR_KEY", live.operator_key)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    run = start_run(
        live, model, [hand], evaluate=upload(live, ROWS, tmp_path) | {"every": "round"},
        task={"kind": "text-classification", "labels": ["lost", "top-up", "other"], "max_length": 32},
        admission={"max_relative_norm": None}, schedule={"blocks": ["layers"], "always": ["pooler", "head"]},
    )  # fmt: skip
    finish(live, run, [hand], scale=0.3)
    scores = {score["after_rounds"]: score["accuracy"] for score in settled(live, run)["evaluations"]}
    data, out = tmp_path / "held-out.jsonl", tmp_path / "said.jsonl"

    for rounds in (2, 0):
        done = predict(run, "--data", data, "--version", rounds, "--out", out, "--json", "--force")
        assert done.exit_code == 0, done.output
        summary = json.loads(done.stdout)
        assert (summary["rows"], summary["accuracy"]) == (len(ROWS), scores[rounds])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["row"], line["expected"]) for line in lines] == [
        (n, ["lost", "top-up", "other"][(n - 1) % 3]) for n in range(1, len(ROWS) + 1)
    ]
    assert sum(line["label"] == line["expected"] for line in lines) / len(ROWS) == pytest.approx(scores[0])
    assert refused("file_there", run, "--data", data, "--out", out)

    Client().runs.export(run, tmp_path / "export", version="best")
    done = predict(tmp_path / "export", "--data", data)
    assert done.exit_code == 0, done.output
    assert f"accuracy {max(scores.values()):.2%}" in done.stdout
    assert f"of run {run} after" in done.stdout

    assert "has done 2 rounds" in refused("round_unknown", run, "--data", data, "--version", 3)
    assert "one model" in refused("invalid", tmp_path / "export", "--data", data, "--version", 1)
    assert "writes no text" in refused("invalid", run, "--data", data, "--max-new-tokens", 5)
    (tmp_path / "wrong.jsonl").write_text('{"text": "a", "label": "lost"}\n{"text": "b", "label": "stolen"}\n')
    assert "row 2" in refused("data_invalid", run, "--data", tmp_path / "wrong.jsonl", "--out", tmp_path / "none.jsonl")
    (tmp_path / "wrong.jsonl").write_text("")
    assert "no rows" in refused("data_invalid", run, "--data", tmp_path / "wrong.jsonl")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if "none" in path.name] == []


def test_a_language_model_gives_losses_or_goes_on(llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "my card", "completion": "is lost"}\n{"prompt": "why", "completion": "not"}\n')
    found = [json.loads(line) for line in predict(llama, "--data", rows, "--json").stdout.splitlines()]
    assert [(line["row"], sorted(line)) for line in found] == [(1, ["loss", "row", "tokens"]), (2, ["loss", "row", "tokens"])]
    found = [json.loads(line) for line in predict(llama, "--data", rows, "--json", "--max-new-tokens", 3).stdout.splitlines()]
    assert [line["tokens"] <= 3 and line["continuation"] != "" for line in found] == [True, True]
    rows.write_text('{"text": "my card is lost"}\n')
    assert "nats a token" in predict(llama, "--data", rows).stdout
    assert "no column 'prompt'" in refused("data_invalid", llama, "--data", rows, "--max-new-tokens", 3)
