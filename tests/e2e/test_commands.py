"""The commands, as a person types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from fedcybgd.agent import sent
from tests.e2e.conftest import Federation, spec, write_rows
from tests.support.processes import ENVIRONMENT, start_agent, trainer


def fedcoord(federation: Federation, *arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, **ENVIRONMENT, "FEDCOORD_URL": federation.coordinator.url, "COLUMNS": "200",
        "FEDCOORD_OPERATOR_KEY": federation.coordinator.key if key is None else key,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "fedcybgd.coordinator.cli", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def fedagent(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **ENVIRONMENT, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "fedcybgd.agent.cli", *arguments, "--home", str(home)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_run_from_file_to_exported_directory(federation: Federation, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from fedcybgd.shared.contract.task import TaskSpec
    from fedcybgd.shared.models.batches import forward_logits
    from fedcybgd.shared.models.row_encoder import row_encoder

    write_rows(tmp_path / "held-out.jsonl", 99)
    values = spec("by-hand", steps=60)
    values["evaluate"] = {"held_out": "held-out.jsonl", "every": "cycle"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    created = fedcoord(federation, "run", "create", str(tmp_path / "run.yaml"), "--start", "--watch")
    assert created.returncode == 0, created.stderr
    assert "4 rounds" in created.stdout
    assert " 4 of 4 rounds" in created.stdout
    watched = fedcoord(federation, "run", "watch", "by-hand", "--json")
    assert watched.returncode == 0, watched.stderr
    assert json.loads(watched.stdout)["state"] == "completed"
    assert "run by-hand: completed, 4 of 4 rounds" in fedcoord(federation, "status").stdout
    view = federation.operator.get("/runs/by-hand")
    assert [e["after_rounds"] for e in view["evaluations"]] == [0, 2, 4]
    explained = json.loads(fedcoord(federation, "explain", "by-hand", "--json").stdout)
    assert (explained["state"], explained["waits"], explained["rounds_done"]) == ("completed", [], 4)
    left = [one for agent in federation.agents for one in sent.read(agent.home / "sent.json") if one.run == "by-hand"]
    assert sum(one.deltas for one in left) == 4
    assert sum(one.bytes_sent for one in left) == view["bytes"]["up"]
    assert {one.coordinator for one in left} == {federation.coordinator.url}
    exported = fedcoord(federation, "run", "export", "by-hand", str(tmp_path / "out"))
    assert exported.returncode == 0, exported.stderr

    home = federation.coordinator.home
    for what in (
        ("by-hand", "--home", home),
        (tmp_path / "out" / "provenance.json", "--export", tmp_path / "out", "--deltas", home / "blobs"),
    ):
        verified = fedcoord(federation, "verify", *map(str, what))
        assert verified.returncode == 0, verified.stderr
        assert "made again" in verified.stdout

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    encoder = row_encoder(tmp_path / "out", TaskSpec(task="text-classification", max_length=16))
    rows = [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]
    batch = encoder.encoded(rows).batch(range(len(rows)))
    right = (forward_logits(model, batch).argmax(-1) == batch.labels).float().mean().item()
    assert right == pytest.approx(view["evaluations"][-1]["accuracy"])


def test_a_wrong_run_file_names_field_and_line(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: x\nmodel: tiny\ntask:\n  kind: text-classification\n  labels: 2\ntrain:\n  learning_rat: 1\n")
    answer = fedcoord(federation, "run", "create", str(tmp_path / "run.yaml"))
    assert answer.returncode == 1
    assert "line 7" in answer.stderr
    assert "train.learning_rat" in answer.stderr


def test_a_wrong_key_and_a_wrong_address_are_one_line_each(federation: Federation) -> None:
    wrong = fedcoord(federation, "status", key="fco_wrong")
    assert wrong.returncode == 1
    assert "no operator's" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    nowhere = subprocess.run(
        [sys.executable, "-m", "fedcybgd.coordinator.cli", "status"], capture_output=True, text=True, timeout=60,
        env={**os.environ, **ENVIRONMENT, "FEDCOORD_URL": "http://127.0.0.1:1", "FEDCOORD_OPERATOR_KEY": "fco_x"},
    )  # fmt: skip
    assert nowhere.returncode == 1
    assert "no coordinator answers" in nowhere.stderr


def test_check_finds_rows_tokens_and_what_is_wrong(federation: Federation, tmp_path: Path) -> None:
    run_id = federation.create(spec("for-check"))
    rows = write_rows(tmp_path / "rows.jsonl", 5)
    agent = start_agent(tmp_path / "agent", "checked", federation.coordinator, rows)
    agent.stop()
    good = fedagent(agent.home, "check")
    assert good.returncode == 0, good.stdout
    assert "64 rows of data rows fit" in good.stdout
    assert "median 10" in good.stdout  # eight words, [CLS] and [SEP]

    rows.write_text(json.dumps({"text": "a", "label": 7}) + "\n")
    bad = fedagent(agent.home, "check")
    assert bad.returncode == 1
    assert "label 7 is outside 0…1" in bad.stdout
    rows.unlink()
    assert "does not exist" in fedagent(agent.home, "check").stdout
    again = fedagent(agent.home, "enroll", federation.coordinator.url, "--token", "fct_xxxxxxxx")
    assert again.returncode == 1
    assert "enrolled already" in again.stderr
    federation.operator.post(f"/runs/{run_id}/cancel")
    federation.operator.post("/agents/checked/revoke")


def test_status_says_what_the_agent_does(federation: Federation) -> None:
    answer = fedagent(federation.agents[0].home, "status")
    assert answer.returncode == 0, answer.stderr
    assert "agent agent-0" in answer.stdout
    assert "the coordinator says: active" in answer.stdout


def test_a_second_agent_in_the_same_home_is_refused(federation: Federation) -> None:
    answer = fedagent(federation.agents[0].home, "run")
    assert answer.returncode == 1
    assert "runs in" in answer.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc, which only Linux has")
def test_neither_web_process_nor_daemon_has_loaded_torch(federation: Federation) -> None:
    for process in (federation.coordinator, *federation.agents):
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    training = trainer(federation.agents[0])
    assert training is not None
    assert "libtorch" in Path(f"/proc/{training.pid}/maps").read_text()
    assert psutil.Process(federation.coordinator.pid).memory_info().rss < 200e6


def test_no_key_in_any_log(federation: Federation) -> None:
    keys = [json.loads((a.home / "credentials.json").read_text())["private_key"] for a in federation.agents]
    assert all(keys)
    keys.append(federation.coordinator.key)
    logs = [a.log.read_text() for a in federation.agents] + [federation.coordinator.log.read_text()]
    assert not any(key in log for key in keys for log in logs)
    assert (federation.agents[0].home / "credentials.json").stat().st_mode & 0o077 == 0
