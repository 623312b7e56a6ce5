"""A run over HTTP gives, to the bit, the weights of the same schedule in one process; and the same ones again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import reference
from tests.e2e.conftest import Federation, spec

TRAIN: dict[str, dict[str, Any]] = {
    # No value is a default: what an agent is not told changes weights. On a device of either kind one precision is not what `auto` takes.
    "fixed": {
        "steps": 20, "batch_size": 8, "learning_rate": 1e-3, "learning_rate_decay": 0.5, "always_learning_rate": 2e-3,
        "always_learning_rate_decay": 0.7, "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.2, "precision": "float32",
    },
    "rotating": {
        "epochs": 2.0, "batch_size": 6, "learning_rate": 2e-3, "warmup_steps": 0, "weight_decay": 0.05, "max_grad_norm": None,
        "precision": "bfloat16",
    },
    "whole": {
        "epochs": 1.5, "batch_size": 7, "learning_rate": 1e-3, "learning_rate_decay": 0.5, "warmup_steps": 2, "max_grad_norm": 0.5,
        "precision": "float32",
    },
    "corrected": {
        "steps": 12, "batch_size": 8, "learning_rate": 1e-3, "learning_rate_decay": 0.5, "warmup_steps": 1, "weight_decay": 0.01, "precision": "float32",
    },
    "adapters": {
        "steps": 12, "batch_size": 8, "learning_rate": 3e-3, "always_learning_rate": 1e-3, "warmup_steps": 1, "weight_decay": 0.01, "max_grad_norm": 0.7,
        "precision": "float32",
    },
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "corrected": {
        "corrections": {"rank": 3, "alpha": 9.0, "matrices": ["query", "intermediate.dense"], "learning_rate": 5e-3}, "compression": {"trained": "int8"},
    },
    "whole": {"method": "whole"},
    "adapters": {
        "method": "adapters", "adapters": {"matrices": ["query", "intermediate.dense"], "rank": 3, "alpha": 9.0, "combine": "exact"}, "compression": {"policy": "int4"},
    },
}  # fmt: skip


@pytest.mark.parametrize("how", ["fixed", "rotating", "whole", "adapters", "corrected"])
def test_equal_to_one_process(federation: Federation, bert: Path, tmp_path: Path, how: str) -> None:
    more = METHODS.get(how, {})
    values = spec(f"equal-{how}", **({} if more else {"agents": how, "order": "random"})) | {"train": TRAIN[how], "seed": 5} | more
    if how == "corrected":
        values["schedule"] |= {"wave": 2, "damping": 0.5}
    if how == "adapters":
        del values["schedule"]["blocks"]
    over_http = federation.digests(federation.start(values))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = reference.begin(tmp_path / "alone", bert, values)
        before = alone.digests()
        reference.run(alone, federation.partitions, tmp_path / "scratch")
    finally:
        torch.set_num_threads(threads)
    assert over_http == alone.digests()
    changed = {name for name, digest in over_http.items() if digest != before[name]}
    assert changed == ({"adapters"} if how == "adapters" else set()) | {"layers.0", "layers.1", "pooler", "head"}


def test_the_same_run_twice(federation: Federation) -> None:
    first = federation.digests(federation.start(spec("twice")))
    second = federation.digests(federation.start(spec("twice")))
    other_seed = federation.digests(federation.start({**spec("twice"), "seed": 1}))
    assert first == second
    assert first["layers.0"] != other_seed["layers.0"]
