"""What a block takes at the least while it is trained is reckoned from its shard, in whatever codec that came."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedcybgd.agent.assignment_run import check_memory
from fedcybgd.agent.errors import VisitFailed
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.manifests import Manifest, ShardRef
from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings
from fedcybgd.shared.tensors.codecs import encode_tensor

NUMBERS = 512 * 512


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_a_block_takes_four_times_its_float32_weights_however_it_came(codec: str, tmp_path: Path) -> None:
    weight = torch.randn(512, 512)
    save_file({"w": weight} if codec == "exact" else dict(encode_tensor("w", weight, codec)), path := tmp_path / "shard")
    ref = ShardRef(block="layers.0", version=0, codec=codec, digest="a" * 64, size=path.stat().st_size)
    groups = [ParameterGroup(blocks=["layers.0"], learning_rate=1e-3)]
    assignment = LeasedAssignment(
        assignment_id="asg_" + 16 * "0", attempt=1, lease_seconds=60, run_id="run_" + 16 * "0", run_name="r", round=0, cycle=0, block="layers.0",
        manifest=Manifest(files=[], blocks=[ref]), max_delta_bytes=10,
        train=TrainSettings(task="text-classification", num_labels=2, groups=groups, batch_size=1, max_length=8, seed=0),
    )  # fmt: skip
    check_memory(1.01 * 16 * NUMBERS, assignment)
    with pytest.raises(VisitFailed, match="needs at least") as error:
        check_memory(0.95 * 16 * NUMBERS, assignment)
    assert error.value.reason == "memory_limit"
