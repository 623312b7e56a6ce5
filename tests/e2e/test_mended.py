"""An owner mends data, and the work goes on: nobody starts anything again, pauses or resumes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedcybgd.client.errors import Refused
from tests.e2e.conftest import Federation, spec, write_rows
from tests.support.processes import start_agent, wait_for


def standing(federation: Federation, run_id: str, agent: str) -> str:
    return next(str(m["standing"]) for m in federation.operator.every(f"/runs/{run_id}/readiness") if m["agent"] == agent)


def test_a_column_of_another_name_is_mended_in_agent_toml(federation: Federation, tmp_path: Path) -> None:
    good = [json.loads(line) for line in write_rows(tmp_path / "good.jsonl", 7).read_text().splitlines()]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"sentence": row["text"], "label": row["label"]}) + "\n" for row in good))
    agent = start_agent(tmp_path / "mender", "mender", federation.coordinator, rows)
    try:
        run_id = federation.create({**spec("mended", steps=5), "agents": ["mender"]})
        wait_for(lambda: standing(federation, run_id, "mender") == "unfit", limit=60)
        with pytest.raises(Refused, match="data_invalid"):
            federation.operator.post(f"/runs/{run_id}/start")
        config = agent.home / "agent.toml"
        config.write_text(config.read_text() + '\n[data.rows.columns]\ntext = "sentence"\n')
        checked = subprocess.run(
            [sys.executable, "-m", "fedcybgd.agent.cli", "check", "--home", str(agent.home)], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout
        assert standing(federation, run_id, "mender") == "ready"
        federation.operator.post(f"/runs/{run_id}/start")
        federation.finished(run_id)
    finally:
        agent.stop()
        federation.operator.post("/agents/mender/revoke")
