"""One card: a visit to a block of a model of Llama-2-7B's shape, the others frozen in int4, against full fine-tuning of the same model.

    python -m benchmarks.card [--json FILE] [--graphs] [--layers 32] [--steps 8] [--blocks first middle last embeddings head]

Random weights are made on the card; nothing is fetched. bfloat16, batches of 2 × 512 tokens, settings of [training] as they come, no row used
twice. Visits go through the agent's own training code. Peaks are what torch allocates at most; the driver's own some 0.5 GB are not in them.
The other side is AdamW over all parameters twice: everything in bfloat16, weights, gradients and moments, which is the least that
anybody does; and float32 with bfloat16 products (16 bytes a parameter), which no card of 80 GB holds: measured with 4 and 8 layers, and
carried on. Frozen codecs are compared on 4 layers.
"""

import gc
import hashlib
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_llama import Shape, config_of, request, write
from benchmarks.report import arguments, finish
from fedcybgd.agent.messages import TrainingOptions
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.memory import estimate
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape
from fedcybgd.shared.models.assembly import skeleton
from fedcybgd.shared.models.batches import forward_logits, loss_sum
from fedcybgd.shared.models.blocks import partition

LLAMA_7B = Shape(layers=32, hidden=4096, inner=11008, tokens=512, batch=2, rows=24, head_dim=128)
TARGETS = {"middle_peak_gb": 9.0, "int4_to_exact": 1.3}
COMPARED = 4
GB = 1e9


def step_seconds(marks: list[float], begins: int = 2) -> float:
    """Of the steps but the first `begins`, which allocate, choose kernels and record graphs: `marks` are the times before each step."""
    return statistics.median(after - before for before, after in itertools.pairwise(marks[begins:]))


def visit(visitor: Visitor, folder: Path, shape: Shape, block: str, codec: str, steps: int, begins: int = 2) -> tuple[float, float]:
    """Peak bytes and seconds a step, of those after `begins`. Every step ends with its loss on the host, so the clock counts what the card does."""
    marks: list[float] = []

    def before_a_step() -> bool:
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        return False

    wanted = request(folder, shape, [block], codec, steps=steps, batch_size=shape.batch, precision="bfloat16")
    metrics = visitor.visit(wanted.model_copy(update={"delta_codec": "int8"}), lambda _: None, before_a_step)
    return metrics.peak_memory_bytes, step_seconds(marks, begins)


def planned(shape: Shape, block: str, codec: str, steps: int) -> int:
    """What `fedcoord plan` says of that visit."""
    blocks = [
        BlockShape(b.name, b.kind, {t.name: tuple(t.shape) for t in b.tensors}) for b in partition(skeleton(config_of(shape), "causal-lm"))
    ]
    spec = RunFile.model_validate(
        {"name": "r", "model": "m", "task": {"kind": "causal-lm", "max_length": shape.tokens},
         "train": {"steps": steps, "batch_size": shape.batch, "precision": "bfloat16"}}
    )  # fmt: skip
    plan = {b.name: "exact" if b.name == block else codec for b in blocks}
    return estimate(spec, ModelShape.of(config_of(shape)), blocks, plan, {block}, "cuda", rows=shape.rows).peak


class Whole:
    """Full fine-tuning: all of it trained by one fused AdamW, in `dtype`, products in bfloat16."""

    def __init__(self, folder: Path, shape: Shape, dtype: torch.dtype) -> None:
        self.model = skeleton(config_of(shape), "causal-lm")
        for module in self.model.modules():
            for leaf, parameter in list(module._parameters.items()):
                if parameter is not None:
                    values = torch.empty(parameter.shape, device="cuda", dtype=dtype)
                    module._parameters[leaf] = torch.nn.Parameter(values.normal_(0, 0.02) if values.ndim > 1 else values.fill_(1))
            for leaf, buffer in module._buffers.items():
                module._buffers[leaf] = None if buffer is None else buffer.to("cuda")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
        wanted = request(folder, shape, [], "int4")
        self.rows = Partition(wanted.data, folder / "files", wanted.train)
        self.batch, self.dtype = shape.batch, dtype

    def step(self, number: int) -> float:
        batch = self.rows.batch([number * self.batch + i for i in range(self.batch)]).to("cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.dtype != torch.bfloat16):
            logits = forward_logits(self.model, batch)
        total, count = loss_sum(logits, batch, "causal-lm")
        loss = total / count
        del logits, total
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def full(folder: Path, shape: Shape, dtype: torch.dtype, steps: int) -> tuple[float, float]:
    """Peak bytes and seconds a step of full fine-tuning. Raises `torch.OutOfMemoryError`."""
    torch.cuda.reset_peak_memory_stats()
    whole = Whole(folder, shape, dtype)
    marks = []
    for number in range(steps):
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        whole.step(number)
    return torch.cuda.max_memory_allocated(), step_seconds(marks)


def alone(work: Callable[[], Any]) -> Any:
    """On a card with nothing left of what was before."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return work()
    except torch.OutOfMemoryError as error:
        print(f"does not fit: {str(error).splitlines()[0]}")
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def visits(folder: Path, shape: Shape, where: dict[str, str], steps: int) -> dict[str, float]:
    """Every block's visit with the others in int4."""
    figures: dict[str, float] = {}
    visitor = Visitor("cuda")
    print(f"\n{'trained':12}{'peak GB':>9}{'planned':>9}{'ms a step':>11}{'tokens/s':>10}")
    for name, block in where.items():
        peak, seconds = visit(visitor, folder, shape, block, "int4", steps)
        plan = planned(shape, block, "int4", steps)
        tokens = shape.batch * shape.tokens / seconds
        print(f"{name:12}{peak / GB:9.2f}{plan / GB:9.2f}{1000 * seconds:11.1f}{tokens:10.0f}", flush=True)
        figures |= {
            f"{name}_peak_gb": peak / GB, f"{name}_plan_to_peak": plan / peak, f"{name}_step_ms": 1000 * seconds,
            f"{name}_tokens_per_s": tokens,
        }  # fmt: skip
    middle = where.get("middle", next(iter(where.values())))
    torch.use_deterministic_algorithms(False)
    figures["any_order_step_ms"] = 1000 * visit(visitor, folder, shape, middle, "int4", steps)[1]
    torch.use_deterministic_algorithms(True, warn_only=True)
    return figures


def graphs(folder: Path, shape: Shape, steps: int) -> dict[str, float]:
    """The block in the middle, its passes started kernel by kernel and as a CUDA graph; of a row used twice nothing is kept."""
    block, found, steps = f"layers.{shape.layers // 2}", {}, max(steps, 16)
    for name, setting in (("plain", "off"), ("graph", "auto")):
        options = TrainingOptions.model_validate({"graphs": setting, "prefix_cache": "off"})
        measured = alone(lambda options=options: visit(Visitor("cuda", options), folder, shape, block, "int4", steps, 4))
        if measured is None:
            return {}
        found[name] = measured
        delta = hashlib.sha256((folder / "delta.safetensors").read_bytes()).hexdigest()[:12]
        peak, seconds = measured
        print(f"{shape.layers} layers, {name:5} {peak / GB:8.2f} GB {1000 * seconds:9.1f} ms a step, delta {delta}", flush=True)
    (plain_peak, plain_s), (graph_peak, graph_s) = found["plain"], found["graph"]
    print(
        f"{shape.layers} layers, graph to plain: {graph_s / plain_s:.2f} of the time, {(graph_peak - plain_peak) / GB:+.2f} GB", flush=True
    )
    return {
        f"graph_{shape.layers}_layers_ms": 1000 * graph_s, f"plain_{shape.layers}_layers_ms": 1000 * plain_s,
        f"graph_{shape.layers}_layers_gb": graph_peak / GB, f"plain_{shape.layers}_layers_gb": plain_peak / GB,
        f"graph_to_plain_{shape.layers}_layers": graph_s / plain_s,
    }  # fmt: skip


def codecs(folder: Path, shape: Shape, steps: int) -> dict[str, float]:
    """Frozen blocks in each codec, the block in the middle trained."""
    block, times = f"layers.{shape.layers // 2}", {}
    for codec in ("exact", "int8", "int4"):
        if (found := alone(lambda codec=codec: visit(Visitor("cuda"), folder, shape, block, codec, steps))) is None:
            return {}
        peak, times[codec] = found
        print(f"{shape.layers} layers, frozen {codec:6} {peak / GB:8.2f} GB {1000 * times[codec]:9.1f} ms a step", flush=True)
    return {f"{codec}_to_exact": times[codec] / times["exact"] for codec in ("int8", "int4")}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=LLAMA_7B.layers)
    parser.add_argument("--steps", type=int, default=8, help="of every visit, at least 4")
    parser.add_argument("--blocks", nargs="+", default=["first", "middle", "last", "embeddings", "head"])
    parser.add_argument(
        "--graphs", action="store_true", help="nothing but the middle block with graphs and without, of 8 layers and of --layers"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"this needs a CUDA card, and torch {torch.__version__} finds none here")
    shape = LLAMA_7B.model_copy(update={"layers": options.layers})
    named = {"first": "layers.0", "middle": f"layers.{shape.layers // 2}", "last": f"layers.{shape.layers - 1}"}
    where = {name: named.get(name, name) for name in options.blocks}
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {shape.layers} layers, {shape.batch} × {shape.tokens} tokens, bfloat16"
    )
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        for layers in sorted({min(8, shape.layers), shape.layers}):
            few = shape.model_copy(update={"layers": layers})
            write(folder / f"graphs-{layers}", few, ["exact", "int4"], "cuda", {f"layers.{layers // 2}"})
            figures |= graphs(folder / f"graphs-{layers}", few, options.steps)
            shutil.rmtree(folder / f"graphs-{layers}")
        if options.graphs:
            finish(figures, {}, options.json)
            return
        write(folder / "whole", shape, ["exact", "int4"], "cuda", set(where.values()))
        figures |= alone(lambda: visits(folder / "whole", shape, where, options.steps)) or {}
        figures |= others(folder / "whole", shape, options.steps)
        small = shape.model_copy(update={"layers": min(COMPARED, shape.layers)})
        write(folder / "small", small, ["exact", "int8", "int4"], "cuda")
        figures |= codecs(folder / "small", small, options.steps)
    finish(figures, TARGETS, options.json)


def others(folder: Path, shape: Shape, steps: int) -> dict[str, float]:
    """Full fine-tuning of the same shape."""
    figures: dict[str, float] = {}
    if (found := alone(lambda: full(folder, shape, torch.bfloat16, steps))) is not None:
        peak, seconds = found
        figures |= {"full_bfloat16_peak_gb": peak / GB, "full_bfloat16_step_ms": 1000 * seconds}
        figures["full_bfloat16_tokens_per_s"] = shape.batch * shape.tokens / seconds
        print(f"full AdamW, all in bfloat16: {peak / GB:.2f} GB, {1000 * seconds:.1f} ms a step", flush=True)
    sizes = {n: alone(lambda n=n: full(folder, shape.model_copy(update={"layers": n}), torch.float32, steps)) for n in (4, 8)}
    if sizes[4] is None or sizes[8] is None:
        return figures
    (few, few_s), (more, more_s) = sizes[4], sizes[8]
    beyond = (shape.layers - 8) / 4
    figures |= {
        "full_float32_8_layers_gb": more / GB, "full_float32_carried_on_gb": (more + beyond * (more - few)) / GB,
        "full_float32_carried_on_ms": 1000 * (more_s + beyond * (more_s - few_s)),
    }  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
