"""Blobs, uploads, an agent's cache and its outbox on volumes of their own: a run goes through all the same."""

from pathlib import Path

import pytest

from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.visits import run_file
from tests.support.volumes import two_volumes


@pytest.mark.parametrize("kind", ["simulated", "real"])
def test_a_run_across_volumes(kind: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_volumes(kind, tmp_path, monkeypatch) as (one, other):
        (one / "coordinator").mkdir()
        for name, target in (("coordinator/blobs", "blobs"), ("agent/cache", "cache"), ("agent/residuals", "residuals")):
            (other / target).mkdir()
            (one / name).parent.mkdir(exist_ok=True)
            (one / name).symlink_to(other / target)
        live = LiveCoordinator(one / "coordinator")
        live.add_model("bert", bert)
        agent = LightAgent(live, one / "agent")
        spec = run_file("bert", [], schedule={"cycles": 2}, compression={"policy": "int8"}, delta={"codec": "int4", "error_feedback": True})
        run = live.create_run(spec | {"agents": [agent.name]}, start=True)["name"]
        while live.operator.get(f"/runs/{run}")["state"] == "running":
            if (assignment := agent.claim(run, wait=0.3)) is not None:
                agent.visit(assignment)
        view = live.operator.get(f"/runs/{run}")
        live.stop()
        assert (view["state"], view["rounds_done"]) == ("completed", 4)
        assert all(b["version"] for b in view["blocks"] if b["trained"])
        assert list((other / "residuals").rglob("*.safetensors"))
