"""One side of `benchmarks.overhead`: does the visits of a run in this one process, and prints what they took.

python -m benchmarks.bare REQUEST    with the request as JSON; it is meant to be started by the benchmark
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from benchmarks import reference


class BareRequest(BaseModel):
    model: Path
    spec: dict[str, Any]
    warm_up_model: Path
    warm_up: dict[str, Any]
    partitions: list[Path]


class BareResult(BaseModel):
    wall_s: float
    cpu_s: float
    train_s: float
    digests: dict[str, str]


def main(request: BareRequest) -> BareResult:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        warm = reference.begin(folder / "warm-up", request.warm_up_model, request.warm_up)
        reference.run(warm, request.partitions, folder / "warm-up-scratch")
        bare = reference.begin(folder / "bare", request.model, request.spec)
        cpu = time.process_time()
        wall = reference.run(bare, request.partitions, folder / "scratch")
        cpu = time.process_time() - cpu
        return BareResult(wall_s=wall, cpu_s=cpu, train_s=sum(m.seconds for m in bare.metrics), digests=bare.digests())


if __name__ == "__main__":
    print(json.dumps(main(BareRequest.model_validate_json(sys.argv[1])).model_dump()))
