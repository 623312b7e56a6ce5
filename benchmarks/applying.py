"""Parameters a second of what an engine does with an accepted delta: apply it, encode the new version, pack it; beside another checkout.

    python -m benchmarks.applying [--against CHECKOUT] [--hidden 2048] [--times 3] [--cores N] [--folder DIR] [--json FILE]

One layer of Llama's shape with random weights (`--hidden 4096` is Llama-2-7B's, 202 million parameters), as it comes in (bfloat16) and as it is
after its first delta (float32), and an int8 delta. Each job is done as the engine does it, in a copy of a process that is warmed up and has
hashed nothing yet. *apply alone* makes the new version; *round* makes what a round's job makes, with frozen blocks in int8: the new version,
its codecs, the steps to them; *pack exact* is what follows when somebody asks for the new version.
With `--against` the code of that checkout (`git worktree add ../before 960660b`) does the same jobs on the same store, in turns, and both must
make the same bytes. Ratios are of medians, by the clock: how many times as many parameters a second.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
JOBS_OF = {"apply alone": (), "round": ("exact", "int8"), "round, int4": ("exact", "int4")}
"""name → the codecs in which the version before is known"""


def measure(store: Path, jobs: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """In a process of either checkout: what each job gave, its seconds by the clock and of the processor, and its peak of private memory."""
    from fedcybgd.coordinator.engine.entries import warm_up

    warm_up(1)
    return {name: forked(lambda kind=kind, payload=payload: done(store, kind, payload)) for name, (kind, payload) in jobs.items()}


def done(store: Path, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    from fedcybgd.coordinator.domain.jobs.kinds import JobKind
    from fedcybgd.coordinator.domain.jobs.registry import JOBS
    from fedcybgd.coordinator.engine.entries import run
    from fedcybgd.coordinator.storage import open_store

    given = JOBS[JobKind(kind)].payload.model_validate(payload)
    with tempfile.TemporaryDirectory(dir=store.parent) as folder:
        for digest in set(re.findall("[0-9a-f]{64}", json.dumps(payload))):  # nothing is there yet of what is made
            if (blob := store / digest[:2] / digest).exists():
                (place := Path(folder) / digest[:2] / digest).parent.mkdir(exist_ok=True)
                place.hardlink_to(blob)
        blobs = open_store(Path(folder))
        began, used = time.monotonic(), time.process_time()
        result = run(kind, given, blobs)
        seconds, cpu = time.monotonic() - began, time.process_time() - used
        size = sum(path.stat().st_size for path in Path(folder).glob("??/*") if path.stat().st_nlink == 1)
    return {"seconds": seconds, "cpu": cpu, "bytes": size, "result": result.model_dump(mode="json")}


def forked(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """In a copy of this process: nothing is remembered from one job to the next."""
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        own_threads()
        with os.fdopen(theirs, "w") as file:
            json.dump(function(), file)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as file:
        found = json.load(file)
    os.waitpid(child, 0)
    return found


def own_threads() -> None:
    """Of a copy of a process: before two threads of it find at once that those of torch are not there."""
    import torch

    torch.set_num_threads(torch.get_num_threads())


def prepare(store: Path, hidden: int) -> tuple[dict[str, dict[str, tuple[str, dict[str, Any]]]], int]:
    """The jobs for each precision, and how many parameters there are."""
    import torch
    from safetensors.torch import save_file

    from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, Change, EncodePayload, Term
    from fedcybgd.coordinator.engine.apply import apply
    from fedcybgd.coordinator.engine.encode import encode
    from fedcybgd.coordinator.storage import open_store
    from fedcybgd.shared.contract.manifests import FileRef, ShardRef
    from fedcybgd.shared.files import lossless
    from fedcybgd.shared.tensors.deltas import encode_delta

    blobs, inner = open_store(store), hidden * 43 // 16
    shapes = {f"layers.0.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
    shapes |= {f"layers.0.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")} | {
        "layers.0.mlp.down_proj.weight": (hidden, inner)
    }
    norms = {f"layers.0.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}

    def normal(name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=torch.Generator().manual_seed(random.Random(name).getrandbits(60)))

    def stored(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, packed: bool = False) -> tuple[str, int]:
        with tempfile.TemporaryDirectory(dir=store) as folder, blobs.writer() as writer:
            save_file(tensors, path := Path(folder) / "file", metadata)
            with path.open("rb") as file:
                for chunk in lossless.pack(path) if packed else iter(lambda: file.read(1 << 20), b""):
                    writer.write(chunk)
        return writer.digest, writer.size

    weights = {n: normal(n, s, 0.02).to(torch.bfloat16) for n, s in shapes.items()} | {
        n: torch.ones(s, dtype=torch.bfloat16) for n, s in norms.items()
    }
    plain, size = stored(weights)
    moved = {n: normal(f"delta of {n}", t.shape, 1e-5) for n, t in weights.items()}
    delta, _ = stored(dict(encode_delta(moved, "int8")), {"codec": "int8"}, packed=True)
    first = ShardRef(block="layers.0", version=0, codec="exact", digest=plain, size=size)
    change = Change(block=first, terms=[Term(digest=delta, weight=1.0)])
    second = apply(blobs, ApplyPayload(round=0, changes=[change])).blocks[0]
    config, jobs = FileRef(name="config.json", digest="0" * 64, size=0), {}
    for precision, ref in (("bfloat16", first), ("float32", second)):
        wanted = [ref.model_copy(update={"codec": codec}) for codec in ("exact", "int8", "int4")]
        payload = EncodePayload(config=config, task="causal-lm", wanted=wanted)
        known = {made.codec: made for made in encode(blobs, payload).shards}
        jobs[precision] = {
            name: (
                "apply",
                ApplyPayload(round=0, changes=[change.model_copy(update={"block": ref})], before=[known[c] for c in codecs]).model_dump(
                    mode="json"
                ),
            )
            for name, codecs in JOBS_OF.items()
        }
        for name, one in zip(("pack exact", "encode int8", "encode int4"), wanted, strict=True):
            jobs[precision][name] = ("encode", payload.model_copy(update={"wanted": [one]}).model_dump(mode="json"))
    return jobs, sum(t.numel() for t in weights.values())


def in_checkout(code: Path, store: Path, jobs: dict[str, Any], cores: int | None) -> dict[str, Any]:
    """The jobs, done by the code that lies there: this file is run as it is here."""
    environment = {**os.environ, "PYTHONPATH": str(code)}
    limit = ["taskset", "-c", f"0-{cores - 1}"] if cores else []
    command = [*limit, sys.executable, "-P", __file__, "--measure", str(store)]
    found = subprocess.run(command, check=True, input=json.dumps(jobs).encode(), stdout=subprocess.PIPE, env=environment)
    return json.loads(found.stdout.splitlines()[-1])


def made(result: dict[str, Any]) -> dict[str, str]:
    """What of a result other checkouts must make to the bit."""
    found = {ref["block"]: ref["digest"] for ref in result.get("blocks", [])}
    found |= {f"{ref['codec']} of {ref['source']}": ref["digest"] for ref in result["shards"]}
    return found | {f"step to {step['target']}": step["digest"] for step in result.get("patches", [])}


def main() -> None:
    from benchmarks.report import arguments, finish

    parser = arguments(__doc__)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--cores", type=int)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder:
        store = Path(folder) / "store"
        jobs, count = prepare(store, options.hidden)
        sides = {"this": HERE} | ({"against": options.against.resolve()} if options.against else {})
        figures: dict[str, float] = {"million_parameters": count / 1e6}
        for precision, wanted in jobs.items():
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(options.times):
                for side, code in sides.items():
                    found[side].append(in_checkout(code, store, wanted, options.cores))
            print(f"{precision}, {count / 1e6:.1f} M parameters: M parameters a second, ns of the processor and bytes stored a parameter")
            for name in wanted:
                figures |= compared(f"{precision} {name}", {side: [run[name] for run in runs] for side, runs in found.items()}, count)
    finish({name.replace(" ", "_").replace(",", ""): value for name, value in figures.items()}, {}, options.json)


def compared(name: str, runs: dict[str, list[dict[str, Any]]], count: int) -> dict[str, float]:
    """The figures of a job, and of both sides that what they make is the same."""
    figures, line, first = {}, f"  {name:22}", runs["this"][0]["result"]
    speed = {side: count / statistics.median(run["seconds"] for run in each) / 1e6 for side, each in runs.items()}
    for side, each in runs.items():
        cpu, size = statistics.median(run["cpu"] for run in each) / count * 1e9, each[0]["bytes"] / count
        line += f"   {side}: {speed[side]:6.1f} M/s {cpu:5.1f} ns {size:5.2f} B"
        figures |= {f"{name} {side} m_s": speed[side], f"{name} {side} ns": cpu, f"{name} {side} bytes": size}
        theirs = made(each[0]["result"])
        unlike = [what for what, digest in made(first).items() if theirs.get(what, digest) != digest]
        assert not unlike, f"{name}: {unlike} are other bytes"
    if "against" in speed:
        figures[f"{name} ratio"] = speed["this"] / speed["against"]
        line += f"   × {speed['this'] / speed['against']:.2f}"
    print(line, flush=True)
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:  # by the code of any checkout, whose benchmarks are none of ours
        print(json.dumps(measure(Path(sys.argv[2]), json.load(sys.stdin))))
    else:
        main()
