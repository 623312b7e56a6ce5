"""The straight path over HTTP, with a delta made by hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.assignments import DeltaSubmission
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.training import TrainMetrics
from tests.support.live import LiveCoordinator

pytestmark = pytest.mark.database_decides


def test_a_delta_makes_the_next_version_and_opens_the_next_round(live: LiveCoordinator, bert: Path, tmp_path: Path) -> None:
    live.add_model("smoke", bert)
    agent = live.enrol("smoke")
    run = live.create_run(
        {
            "name": "smoke", "model": "smoke", "agents": ["smoke"], "task": {"kind": "text-classification", "labels": 3, "max_length": 32},
            "schedule": {"blocks": ["layers"], "always": ["head"]}, "compression": {"policy": "none"}, "delta": {"codec": "float32"},
        },
        start=True,
    )  # fmt: skip
    assert run["state"] == "running"
    assignment = agent.claim(ClaimRequest(runs=["*"]), wait=5)
    assert assignment is not None
    assert assignment.block == "layers.0"
    names = {b.block: b for b in assignment.manifest.blocks}
    tensors = {}
    for block in ("layers.0", "head"):
        with agent.shard(assignment.assignment_id, names[block].digest, 0) as answer:
            path = tmp_path / block
            path.write_bytes(b"".join(answer.iter_raw()))
        from safetensors.torch import load_file

        tensors |= {name: torch.full_like(t, 1e-4) for name, t in load_file(path).items()}  # within reach of one step
    delta = tmp_path / "delta.safetensors"
    save_file(tensors, delta)
    digest = digest_of_file(delta)
    agent.upload(assignment.assignment_id, digest, delta, 0, delta.stat().st_size)
    metrics = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1)
    receipt = agent.submit(assignment.assignment_id, DeltaSubmission(attempt=assignment.attempt, digest=digest, metrics=metrics))
    assert receipt.state == "submitted"
    following = agent.claim(ClaimRequest(runs=["*"]), wait=10)
    assert following is not None
    assert following.block == "layers.1"
    after = {b.block: b for b in following.manifest.blocks}
    assert after["layers.0"].version == 1
    assert after["head"].version == 1
    assert after["layers.1"].digest == names["layers.1"].digest
