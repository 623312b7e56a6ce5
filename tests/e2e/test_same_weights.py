"""A run over HTTP gives, to the bit, the weights of the same schedule in one process; and the same ones again."""

from pathlib import Path

import pytest
import torch

from benchmarks import reference
from fedcybgd.coordinator.domain.run_file import RunFile
from tests.e2e.conftest import Federation, spec


@pytest.mark.parametrize("agents", ["fixed", "rotating"])
def test_equal_to_one_process(federation: Federation, bert: Path, tmp_path: Path, agents: str) -> None:
    values = spec(f"equal-{agents}", agents=agents, order="random")
    over_http = federation.digests(federation.start(values))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = reference.begin(tmp_path / "alone", bert, RunFile.model_validate(values))
        before = alone.digests()
        reference.run(alone, federation.partitions, tmp_path / "scratch")
    finally:
        torch.set_num_threads(threads)
    assert over_http == alone.digests()
    changed = {name for name, digest in over_http.items() if digest != before[name]}
    assert changed == {"layers.0", "layers.1", "pooler", "head"}


def test_the_same_run_twice(federation: Federation) -> None:
    first = federation.digests(federation.start(spec("twice")))
    second = federation.digests(federation.start(spec("twice")))
    other_seed = federation.digests(federation.start({**spec("twice"), "seed": 1}))
    assert first == second
    assert first["layers.0"] != other_seed["layers.0"]
