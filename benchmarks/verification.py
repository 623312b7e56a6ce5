"""What it costs to verify the shards of an emulator before a visit, against the training of that visit.

    python -m benchmarks.verification [--json FILE] [--repeats N]

A Llama-shaped model with random weights on a CPU, one thread; a middle layer is trained among int8 blocks, in a visit of 20 steps.
Process CPU time is the figure. `first` hashes every shard, as after a start; `again` asks for shards that are known.
"""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.random_llama import Shape, request, write
from benchmarks.report import arguments, finish

SHAPE = Shape(layers=6, hidden=512, inner=1408, vocabulary=8000, tokens=128, rows=80)
STEPS = 20
TARGETS = {"first_to_visit": 0.05, "again_to_visit": 0.001}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    import torch

    from fedcybgd.agent.training.visitor import Visitor
    from fedcybgd.shared.contract.digests import digest_of_file
    from fedcybgd.shared.files.verified import Verifier

    torch.set_num_threads(1)
    first, again, visits = [], [], []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name) / "model"
        write(folder, SHAPE, ["exact", "int8"])
        asked = request(folder, SHAPE, [SHAPE.blocks[len(SHAPE.blocks) // 2]], "int8", steps=STEPS, precision="float32")
        shards = [(Path(s.path), digest_of_file(Path(s.path))) for s in asked.shards]
        visitor = Visitor("cpu")
        visitor.visit(asked, lambda _: None, lambda: False)  # warm
        for _ in range(options.repeats):
            verifier = Verifier()
            for times in (first, again):
                began = time.process_time()
                assert all(verifier.is_whole(path, digest) for path, digest in shards)
                times.append(time.process_time() - began)
            began = time.process_time()
            visitor.visit(asked, lambda _: None, lambda: False)
            visits.append(time.process_time() - began)
        megabytes = sum(path.stat().st_size for path, _ in shards) / 1e6
    ratios = {f"{kind}_to_visit": statistics.median(t / v for t, v in zip(times, visits, strict=True))
              for kind, times in (("first", first), ("again", again))}  # fmt: skip
    seconds = {"shards_mb": megabytes, "first_cpu_ms": 1000 * statistics.median(first), "visit_cpu_ms": 1000 * statistics.median(visits)}
    finish(seconds | ratios, TARGETS, options.json)


if __name__ == "__main__":
    main()
