"""Peak memory of the training process: a visit to one block against full fine-tuning of the same model.

    python -m benchmarks.agent_memory [--json FILE] [--codecs int8 int4] [--blocks first middle last] [--full]

A Llama-shaped model of about 240M random parameters on a CPU in float32, batches of 4 × 256 tokens. Every variant runs in a
process of its own; its peak resident memory (pages of mapped shards count) beyond that of a bare interpreter with torch
imported is the figure. The embeddings are visited twice: trained in the rows
that occur, as agents do it, and all of them. All sides get MALLOC_MMAP_THRESHOLD_, without which glibc keeps what was freed.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.random_llama import FullFineTuning, Shape, request, write
from benchmarks.report import arguments, finish

SHAPE = Shape(layers=16, hidden=1024, inner=2816)
WHERE = {"first": 0, "middle": SHAPE.layers // 2, "last": SHAPE.layers - 1}
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "262144", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
TARGETS = {"middle_int8_ratio": 0.20, "middle_int4_ratio": 0.20}
MEASURE_BARE = """
import torch, pathlib
print([int(l.split()[1]) * 1024 for l in pathlib.Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM:")][0])
"""


def peak() -> int:
    """The most resident bytes that this process ever had."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def child(spec: dict[str, Any]) -> dict[str, float]:
    """One variant, in a fresh process."""
    import torch

    folder, shape, steps = Path(spec["folder"]), Shape.model_validate(spec["shape"]), spec["steps"]
    torch.set_num_threads(spec["threads"])
    if spec["kind"] == "write":
        write(folder, shape, spec["codecs"])
        return {}
    if spec["kind"] == "full":
        full = FullFineTuning(folder, shape, steps, torch.float32)
        for i in range(steps):
            full.step([(i * shape.batch + j) % shape.rows for j in range(shape.batch)])
        return {"peak": peak()}
    from fedcybgd.agent.messages import TrainingOptions
    from fedcybgd.agent.training.visitor import Visitor

    visitor = Visitor("cpu", TrainingOptions.model_validate(spec["options"]), whole_tables=spec.get("whole", False))
    metrics = visitor.visit(request(folder, shape, spec["opened"], spec["codec"], **spec["settings"]), lambda _: None, lambda: False)
    return {"peak": peak(), "reported": metrics.peak_memory_bytes, "seconds": metrics.seconds}


def in_a_process(**spec: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.agent_memory", "--child", json.dumps(spec)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT})
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def bare() -> int:
    done = subprocess.run([sys.executable, "-c", MEASURE_BARE], check=True, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT})
    return int(done.stdout)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--child", help="(used by the benchmark itself)")
    parser.add_argument("--codecs", nargs="+", default=["int8", "int4"], help="codecs of the frozen blocks")
    parser.add_argument("--blocks", nargs="+", default=["first", "middle", "last"], choices=list(WHERE))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help="settings of [training], as JSON")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of the visit, as JSON")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        common = {"folder": f"{name}/model", "shape": SHAPE.model_dump(), "threads": options.threads, "steps": options.steps}
        in_a_process(kind="write", codecs=["exact", *[c for c in options.codecs if c != "exact"]], **common)
        base = bare()
        print(f"a bare interpreter with torch: {base / 1e6:.0f} MB; what follows is beyond it")
        full = in_a_process(kind="full", **common)["peak"] - base
        figures["full_mb"] = full / 1e6
        print(f"full fine-tuning, AdamW        {full / 1e6:8.0f} MB", flush=True)
        for codec in options.codecs:
            for where in options.blocks:
                opened = [f"layers.{WHERE[where]}"]
                settings = {"steps": options.steps, **options.settings}
                found = in_a_process(kind="visit", opened=opened, codec=codec, options=options.options, settings=settings, **common)
                own = found["peak"] - base
                figures |= {f"{where}_{codec}_mb": own / 1e6, f"{where}_{codec}_ratio": own / full}
                print(f"{opened[0]:10} ({where}), {codec:6}    {own / 1e6:8.0f} MB   {own / full:6.1%} of full   "
                      f"{found['seconds'] / options.steps:.2f} s a step", flush=True)  # fmt: skip
            sides = {}
            for side in ("rows", "whole"):
                found = in_a_process(kind="visit", opened=["embeddings"], codec=codec, options=options.options,
                                     settings={"steps": options.steps, **options.settings}, whole=side == "whole", **common)  # fmt: skip
                sides[side] = found["peak"] - base
                figures |= {f"embeddings_{side}_{codec}_mb": sides[side] / 1e6, f"embeddings_{side}_{codec}_ratio": sides[side] / full}
                print(f"embeddings ({side}), {codec:6}    {sides[side] / 1e6:8.0f} MB   {sides[side] / full:6.1%} of full", flush=True)
            figures[f"embeddings_{codec}_rows_of_whole"] = sides["rows"] / sides["whole"]
    finish(figures, TARGETS, options.json)


if __name__ == "__main__":
    main()
