"""How much memory the coordinator's heavy work takes on a random Llama-shaped model of more than 2 GB in bfloat16.

    python -m benchmarks.coordinator_memory [--json FILE]

Import, a run's preparation, block influence (64 windows of 48 tokens, in two batches), encoding (exact, int8, int4, pruned:25; embeddings,
norm, head and three layers each), judging and applying int8 deltas of a layer and of the embeddings (with the new shards and patches), and
export: each is done as the engine does it (`coordinator.engine.entries.run` on a real store), in a copy of a process that has imported
torch and the engine. Peaks count beyond what that process held then, in two ways: *resident* is all that it has in memory (VmHWM),
mapped pages of shards included, which the system can take back at any time; *private* is what only the process has (RssAnon, looked at
every 2 ms). Allowed is three times the largest block, as it is imported, beyond the same work on a tiny model.
"""

import json
import multiprocessing
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.applying import own_threads
from benchmarks.import_memory import LARGE, TINY, write_checkpoint
from benchmarks.random_llama import _write_tokenizer
from benchmarks.report import arguments, finish

ROWS, TOKENS = 64, 48
CODECS = ("exact", "int8", "int4", "pruned:25")
DISK = 16e9
"""Bytes that the checkpoint, its blocks, their encoded shards and the export take, with room to spare."""


class Measured(BaseModel):
    """Bytes beyond the warmed-up process, seconds by the clock and of the processor, and what the work gave."""

    resident: int
    private: int
    seconds: float
    cpu: float
    result: dict[str, Any]


class PeakPrivate(threading.Thread):
    """Looks at the anonymous memory of this process until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = anonymous()
        self._stop_looking = threading.Event()

    def run(self) -> None:
        while not self._stop_looking.wait(0.002):
            self.peak = max(self.peak, anonymous())

    def stop(self) -> int:
        self._stop_looking.set()
        self.join()
        return max(0, self.peak - self.before)


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024


def job(kind: str, payload: dict[str, Any], store: Path) -> Measured:
    """One job in this process, measured."""
    from fedcybgd.agent.training.memory import PeakMemory, resident
    from fedcybgd.coordinator.domain.jobs.kinds import JobKind
    from fedcybgd.coordinator.domain.jobs.registry import JOBS
    from fedcybgd.coordinator.engine.entries import run
    from fedcybgd.coordinator.storage import open_store

    given = JOBS[JobKind(kind)].payload.model_validate(payload)
    memory, private, began, used = PeakMemory("cpu", resident()), PeakPrivate(), time.monotonic(), time.process_time()
    private.start()
    result = run(kind, given, open_store(store)).model_dump(mode="json")
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    return Measured(resident=memory.peak(), private=private.stop(), seconds=seconds, cpu=cpu, result=result)


def in_a_process(function: Callable[..., Any], *values: Any) -> Any:
    """What `function` gives in a copy of this process, which has warmed up and done nothing else."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def answer() -> None:
        own_threads()
        theirs.send(function(*values))

    process = context.Process(target=answer)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__} failed") from None
    finally:
        process.join()


def make_delta(store: Path, shard: str) -> str:
    """A packed int8 delta for the block of the exact shard `shard`, as an agent sends it; returns its digest."""
    import torch
    from safetensors.torch import save_file

    from fedcybgd.coordinator.engine.shards import shard_header
    from fedcybgd.coordinator.storage import open_store
    from fedcybgd.shared.files import lossless
    from fedcybgd.shared.tensors.deltas import encode_delta

    blobs, generator = open_store(store), torch.Generator().manual_seed(3)
    header = shard_header(blobs, shard)
    encoded = {}
    for name, tensor in header.tensors.items():
        encoded |= encode_delta({name: torch.randn(tensor.shape, generator=generator) * 1e-3}, "int8")
    with tempfile.TemporaryDirectory(dir=store) as folder, blobs.writer() as writer:
        save_file(encoded, Path(folder) / "delta", {"codec": "int8"})
        for chunk in lossless.pack(Path(folder) / "delta"):
            writer.write(chunk)
    return writer.digest


class Coordinator:
    """A store, and jobs on it one after another, each in a process of its own."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.measured: dict[str, Measured] = {}

    def do(self, name: str, kind: str, payload: dict[str, Any]) -> Any:
        found = self.measured[name] = in_a_process(job, kind, payload, self.store)
        print(
            f"  {name:18} resident {found.resident / 1e6:7.1f} MB, private {found.private / 1e6:7.1f} MB, {found.seconds:6.1f} s",
            flush=True,
        )
        return found.result


def work(folder: Path, sizes: dict[str, int]) -> tuple[dict[str, Measured], int, dict[str, int]]:
    """All steps on a model of these sizes: their memory, the model's bytes, and the bytes of its blocks as imported."""
    source = folder / "source"
    size = in_a_process(write_checkpoint, source, sizes)
    in_a_process(_write_tokenizer, source, sizes["vocab_size"])
    coordinator = Coordinator(folder / "store")
    imported = coordinator.do("import", "import", {"source": str(source)})
    shutil.rmtree(source)
    held_out = in_a_process(_held_out, coordinator.store, sizes["vocab_size"])
    task: dict[str, Any] = {"task": "causal-lm", "num_labels": None, "label_names": None, "max_length": TOKENS, "held_out": held_out}
    prepared = coordinator.do(
        "prepare", "prepare",
        task | {"config": imported["config"], "files": imported["files"], "blocks": imported["blocks"], "patterns": ["all"], "always": [],
                "layers_per_block": 1, "seed": 0},
    )  # fmt: skip
    blocks = {b["name"]: b for b in prepared["blocks"]}
    refs = {name: {"block": name, "version": 0, "codec": "exact", "digest": b["digest"], "size": b["size"]} for name, b in blocks.items()}
    files = prepared["files"]
    config = next(f for f in files if f["name"] == "config.json")
    found = coordinator.do("influence", "influence", task | {"files": files, "blocks": list(refs.values()), "rows": ROWS})
    assert found["rows"] == ROWS
    assert len(found["influence"]) == sizes["num_hidden_layers"]
    encoded = []
    for codec in CODECS:
        wanted = [refs[name] | {"codec": codec} for name in _some(blocks) if codec != "pruned:25" or name.startswith("layers.")]
        payload = {"config": config, "task": "causal-lm", "wanted": wanted}
        encoded += coordinator.do(f"encode {codec}", "encode", payload)["shards"]
    changes = []
    for name in ("layers.0", "embeddings"):
        digest = in_a_process(make_delta, coordinator.store, refs[name]["digest"])
        admitted = {"assignment_id": "benchmark", "delta": digest, "blocks": [refs[name]], "always": [], "rules": {}}
        verdict = coordinator.do(f"admit {name}", "admit", admitted)
        assert verdict["rejected_because"] is None
        changes.append({"block": refs[name], "terms": [{"digest": digest, "weight": 1.0}], "codecs": ["int8"]})
    # What agents hold are the exact shards and those in int8; a round has one block in a strict cycle, and several in a wave.
    before = [ref for ref in encoded if ref["codec"] in ("exact", "int8", "int4")]
    for name, some in (("layers.0", changes[:1]), ("embeddings", changes[1:]), ("both", changes)):
        payload = {"round": 0, "changes": some, "config": config, "task": "causal-lm", "before": before}
        applied = coordinator.do(f"apply {name}", "apply", payload)
        assert len(applied["shards"]) == 3 * len(some)
        assert applied["patches"] or sizes is TINY  # of so little, patches are no smaller than the shards
    refs |= {b["block"]: b for b in applied["blocks"]}
    exported = coordinator.do("export", "export", {"after_rounds": 1, "task": "causal-lm", "files": files, "blocks": list(refs.values())})
    assert next(f for f in exported["files"] if f["name"] == "model.safetensors")["size"] >= size
    return coordinator.measured, size, {b["name"]: b["size"] for b in imported["blocks"]}


def _some(names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [name for name in listed if not name.startswith("layers.")] + [name for name in listed if name.startswith("layers.")][:3]


def _held_out(store: Path, vocabulary: int) -> dict[str, Any]:
    from fedcybgd.coordinator.engine.shards import write_blob
    from fedcybgd.coordinator.storage import open_store

    words = random.Random(1)
    text = " ".join(f"w{words.randrange(2, vocabulary)}" for _ in range(ROWS * TOKENS))
    digest, _ = write_blob(open_store(store), (json.dumps({"text": text}) + "\n").encode())
    return {"digest": digest, "name": "held_out.jsonl", "columns": {}}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="where there is room for 16 GB; default: the system's directory of temporary files")
    options = parser.parse_args()
    from fedcybgd.coordinator.engine.entries import warm_up

    warm_up(1)
    results = {}
    for name, sizes in (("tiny", TINY), ("large", LARGE)):
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder:
            if shutil.disk_usage(folder).free < DISK:
                raise SystemExit(f"{folder} has less than 16 GB free; name another directory with --folder")
            print(f"{name} model", flush=True)
            results[name] = work(Path(folder), sizes)
    (tiny, _, _), (large, size, blocks) = results["tiny"], results["large"]
    assert size >= 2e9
    largest = max(blocks.values())
    figures = {"model_mb": size / 1e6, "largest_block_mb": largest / 1e6}
    targets = {}
    print(f"\na model of {size / 1e6:.0f} MB, its largest block {max(blocks, key=lambda name: blocks[name])} of {largest / 1e6:.0f} MB")
    print(f"{'':18} {'resident MB':>11} {'private MB':>11} {'constant':>9} {'of three largest blocks':>24}")
    for name, found in large.items():
        key = name.replace(" ", "_").replace(".", "_").replace(":", "_")
        constant = tiny[name].resident
        share = (found.resident - constant) / (3 * largest)
        print(f"{name:18} {found.resident / 1e6:11.1f} {found.private / 1e6:11.1f} {constant / 1e6:9.1f} {share:24.1%}")
        figures |= {f"{key}_mb": found.resident / 1e6, f"{key}_private_mb": found.private / 1e6, f"{key}_constant_mb": constant / 1e6}
        figures[f"{key}_s"] = found.seconds
        targets[f"{key}_mb"] = (3 * largest + constant) / 1e6
    finish(figures, targets, options.json)


if __name__ == "__main__":
    main()
