"""docs/rest.md does what it says, command by command, in one shell; and leaves nothing behind."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.processes import wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rest.md"
STRICT = "set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.timeout(600)
def test_the_page_of_curl_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    commands = STRICT + "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEDCOORD_", "FEDAGENT_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PORT": str(free_port())}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550)
    place = tmp_path / "rest-tour"
    logs = "".join(path.read_text()[-3000:] for path in place.glob("*.log"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    model = AutoModelForSequenceClassification.from_pretrained(place / "fine-tuned")
    assert model.config.num_labels == 2
    losses = [float(loss) for loss in re.findall(r'"loss":([0-9.]+)', done.stdout)]
    assert losses[-1] < losses[0]
    told = [json.loads(line[5:]) for line in (place / "events.txt").read_text().splitlines() if line.startswith("data:")]
    ids = [event["id"] for event in told]
    assert ids == sorted(set(ids)), "each event once"
    codes = [event["code"] for event in told]
    assert {"model_upload_begun", "model_added", "agent_enrolled", "run_created", "run_started", "run_completed"} <= set(codes)
    for act in ("exports/{export_id}", "held-out/{digest}", "runs/{run}", "models/{name}", "agents/{name}"):
        assert f"{act}/delete" in done.stdout
    assert json.loads((place / "fine-tuned" / "provenance.json").read_text())
    wait_for(lambda: not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] and str(tmp_path) in p.info["cwd"]], limit=10)
