"""A model of Llama-2-7B's shape through the whole path on one machine: memory, seconds and disk of each step, beside the plan.

    python -m benchmarks.seven_billion [--json FILE] [--shape 7b] [--layers 32] [--steps 2] [--batch 1] [--tokens 128] [--folder DIR] [--most-disk GB]
    python -m benchmarks.seven_billion --shape 70b --layers 2 --no-visit

Random weights are written file by file; nothing is fetched. Import, a run's preparation, encoding (the frozen blocks as policy `int4` has
them, what is trained exact), one agent's visit to the layer in the middle on this machine's processor in bfloat16, judging and applying
its delta with the new shards and patches, the agent's step by such a patch, and an export: engine functions and the agent's own training
code, each in a process of its own. *Resident* and *private* are peaks beyond that process as it began (as in
`coordinator_memory`); the disk is all that lies there after a step. The agent holds packed shards beside those that it made of them, as it does.
Where memory or disk is missing it says how much, and ends; with fewer `--layers` blocks are as large, and there are fewer of them.
To fit on less disk the packed shards of the first versions are deleted before the export. `--shape 70b` has blocks of Llama-2-70B's shape;
with `--no-visit` the delta is of random numbers, so that the engine's steps can be taken where no visit has room.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from benchmarks.agent_memory import ENVIRONMENT
from benchmarks.coordinator_memory import Measured, PeakPrivate, in_a_process, job, make_delta
from benchmarks.import_memory import write_checkpoint
from benchmarks.random_llama import _write_tokenizer
from benchmarks.report import arguments, finish
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.duration import Work, planned_step_s
from fedcybgd.coordinator.planning.forecast import AgentFacts, AgentForecast, forecast
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, blocks_of_run, shard_bytes
from fedcybgd.coordinator.planning.traffic import packed_bytes

VOCABULARY = 32_000
WIDTHS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32, "num_key_value_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28_672, "num_attention_heads": 64, "num_key_value_heads": 8},
}
GB, MB = 1e9, 1e6
SPARE = 2 * GB
"""Of memory, for everything else on the machine"""
CHUNK = 1 << 20


class Plan:
    """What `fedcoord plan` says of the visit, and what follows from the same shapes."""

    def __init__(self, shape: str, layers: int, steps: int, batch: int, tokens: int) -> None:
        from fedcybgd.shared.models.assembly import skeleton
        from fedcybgd.shared.models.blocks import partition

        self.config = {
            "model_type": "llama",
            "tie_word_embeddings": False,
            "num_hidden_layers": layers,
            "vocab_size": VOCABULARY,
            **WIDTHS[shape],
        }
        self.visited = f"layers.{layers // 2}"
        self.spec = RunFile.model_validate(
            {"name": "r", "model": "m", "task": {"kind": "causal-lm", "max_length": tokens}, "schedule": {"cycles": 1, "blocks": [self.visited]},
             "train": {"steps": steps, "batch_size": batch, "precision": "bfloat16"}, "compression": {"policy": "int4"}}
        )  # fmt: skip
        shapes = [
            BlockShape(b.name, b.kind, {t.name: tuple(t.shape) for t in b.tensors}, 2)
            for b in partition(skeleton(self.config, "causal-lm"))
        ]
        self.model = ModelShape.of(self.config)
        self.blocks, visited = blocks_of_run(self.spec, self.config, shapes)
        agent = AgentFacts("agent", memory_bytes=24 * 10**9)
        self.agent: AgentForecast = forecast(self.spec, self.model, self.blocks, visited, [agent], rows=steps * batch).agents[0]
        self.codecs = {b.name: "exact" if b.name == self.visited else "int4" if b.kind == "layer" else "int8" for b in self.blocks}
        parameters = sum(b.num_parameters for b in self.blocks)
        self.step_s = planned_step_s(Work(parameters, batch * tokens, steps, 0), "cpu")

    def memory(self) -> int:
        visit = self.agent.visits[0].memory
        assert visit is not None, self.agent.why_not
        return visit.peak

    def allowed(self) -> int:
        """Of the engine: three times the largest block as it is imported."""
        return 3 * max(shard_bytes(b, "exact", self.model) for b in self.blocks)

    def bytes(self, codec: str | None = None, packed: bool = False) -> int:
        """Of all blocks, in the codecs of the visit or in one."""
        size: Callable[[BlockShape, str, ModelShape], int] = packed_bytes if packed else shard_bytes
        return sum(size(b, codec or self.codecs[b.name], self.model) for b in self.blocks)

    def disk(self) -> int:
        """The most that lies on the disk: two copies of the model while it is imported or exported, or the visit's shards on either side."""
        exact, plain, block = self.bytes("exact"), self.bytes(), max(shard_bytes(b, "exact", self.model) for b in self.blocks)
        return max(2 * exact, exact + 2 * plain + self.bytes(packed=True), 2 * exact + plain) + 9 * block


class Made(BaseModel):
    """What a step of the agent's gave, with its peaks."""

    resident: int
    private: int
    seconds: float
    cpu: float
    told: dict[str, Any] = {}


def normal(name: str, size: int) -> Iterator[bytes]:
    """Bytes of bfloat16 numbers: 0.02 × normal for matrices, and ones for the norms."""
    import torch

    generator = torch.Generator().manual_seed(random.Random(name).getrandbits(60))
    while size > 0:
        count = min(CHUNK, size) // 2
        values = torch.ones(count) if "norm" in name else 0.02 * torch.randn(count, generator=generator)
        yield values.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
        size -= 2 * count


def agent_does(what: str, request: str) -> Made:
    """A step of the agent's in a fresh process, with the environment of a training process."""
    command = [sys.executable, "-m", "benchmarks.seven_billion", what, request]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT})
    return Made.model_validate_json(done.stdout.splitlines()[-1])


def here(what: str, request: str) -> Made:
    """The same in this process."""
    from fedcybgd.agent.messages import LocalShard, TrainRequest
    from fedcybgd.agent.training.memory import PeakMemory, resident
    from fedcybgd.agent.training.shards import materialise
    from fedcybgd.agent.training.visitor import Visitor

    if what == "--step":
        memory, private, began, used = PeakMemory("cpu", resident()), PeakPrivate(), time.monotonic(), time.process_time()
        private.start()
        materialise(LocalShard.model_validate_json(request))
        seconds, cpu = time.monotonic() - began, time.process_time() - used
        return Made(resident=memory.peak(), private=private.stop(), seconds=seconds, cpu=cpu)
    visitor = Visitor("cpu")
    private, began, used = PeakPrivate(), time.monotonic(), time.process_time()
    private.start()
    metrics = visitor.visit(TrainRequest.model_validate_json(request), lambda _: None, lambda: False)
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    told = metrics.model_dump(mode="json")
    return Made(resident=metrics.peak_memory_bytes, private=private.stop(), seconds=seconds, cpu=cpu, told=told)


class Path7B:
    """The steps in their order, on one folder."""

    def __init__(self, folder: Path, plan: Plan, visits: bool) -> None:
        self.folder, self.plan, self.visits = folder, plan, visits
        self.figures: dict[str, float] = {}
        self.store, self.agent = folder / "store", folder / "agent"
        self.rows: dict[str, tuple[Made | Measured, float]] = {}
        """step → what it took, and the bytes on the disk after it"""
        self.most = 0.0
        self.notes: dict[str, str] = {}

    def disk(self) -> float:
        """Bytes that the folder takes; a file with two names counts once."""
        files = {(s.st_dev, s.st_ino): s.st_blocks * 512 for p in self.folder.rglob("*") if (s := p.lstat()) and p.is_file()}
        self.most = max(self.most, sum(files.values()))
        return float(sum(files.values()))

    def note(self, name: str, found: Made | Measured, planned: str = "") -> None:
        disk = self.disk()
        self.rows[name], self.notes[name] = (found, disk), planned
        print(
            f"  {name:22} {found.resident / MB:9.0f} {found.private / MB:9.0f} MB {found.seconds:8.1f} {found.cpu:8.1f} s {disk / GB:7.2f} GB   {planned}",
            flush=True,
        )

    def engine(self, name: str, kind: str, payload: dict[str, Any], planned: str = "") -> dict[str, Any]:
        found: Measured = in_a_process(job, kind, payload, self.store)
        self.note(name, found, planned)
        return found.result

    def walk(self) -> None:
        plan, three = self.plan, f"planned at most {self.plan.allowed() / MB:.0f} MB"
        source = self.folder / "source"
        in_a_process(write_checkpoint, source, {k: v for k, v in plan.config.items() if type(v) is int}, normal)
        in_a_process(_write_tokenizer, source, VOCABULARY)
        model = self.engine("import", "import", {"source": str(source)}, three)
        shutil.rmtree(source)
        prepared = self.engine("prepare", "prepare", {
            "task": "causal-lm", "num_labels": None, "label_names": None, "max_length": plan.spec.task.max_length, "held_out": None,
            "config": model["config"], "files": model["files"], "blocks": model["blocks"], "patterns": ["all"], "always": [],
            "layers_per_block": 1, "seed": 0,
        }, three)  # fmt: skip
        refs = {
            b["name"]: {"block": b["name"], "version": 0, "codec": "exact", "digest": b["digest"], "size": b["size"]}
            for b in prepared["blocks"]
        }
        files, visited = prepared["files"], plan.visited
        config = next(f for f in files if f["name"] == "config.json")
        common = {"config": config, "task": "causal-lm"}
        frozen = [refs[name] | {"codec": codec} for name, codec in plan.codecs.items() if name != visited]
        encoded = self.engine("encode the frozen", "encode", common | {"wanted": frozen}, three)["shards"]
        own = [refs[visited], refs[visited] | {"codec": "int4"}]
        encoded += self.engine("encode the visited", "encode", common | {"wanted": own}, three)["shards"]
        self.agent.mkdir()
        if self.visits:
            delta = self.visit(files, encoded, {ref["digest"]: name for name, ref in refs.items()})
        else:
            delta = in_a_process(make_delta, self.store, refs[visited]["digest"])
        verdict = self.engine(
            "admit", "admit", {"assignment_id": "a", "delta": delta, "blocks": [refs[visited]], "always": [], "rules": {}}, three
        )
        assert verdict["rejected_because"] is None, verdict
        before = [s for s in encoded if s["source"] == refs[visited]["digest"]]
        for number in (0, 1):  # the first makes float32 of bfloat16: norms, too, so that no patch leads over it
            change = {"block": refs[visited], "terms": [{"digest": delta, "weight": 1.0}], "codecs": []}
            name = "apply, again" if number else "apply"
            applied = self.engine(name, "apply", common | {"round": number, "changes": [change], "before": before}, three)
            refs[visited], old, before = applied["blocks"][0], before, applied["shards"]
        self.patch(applied, next(s for s in old if s["codec"] == "int4"))
        shutil.rmtree(self.agent)
        for shard in encoded:
            next(self.store.rglob(shard["packed"]["digest"])).unlink()
        payload = {"after_rounds": 2, "task": "causal-lm", "files": files, "blocks": list(refs.values())}
        exported = self.engine("export", "export", payload, three)
        size = next(f["size"] for f in exported["files"] if f["name"] == "model.safetensors")
        assert size >= plan.bytes("exact"), "the export is not the whole model"

    def visit(self, files: list[dict[str, Any]], encoded: list[dict[str, Any]], names: dict[str, str]) -> str:
        """The agent's: unpacks its shards, trains, leaves the delta; its digest in the store. `names`: exact shard → block."""
        from fedcybgd.agent.messages import DataSource, LocalShard, TrainRequest
        from fedcybgd.coordinator.storage import open_store
        from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings

        store, plan, train = open_store(self.store), self.plan, self.plan.spec.train
        by_source = {(s["source"], s["codec"]): s for s in encoded}
        shards, down = [], 0
        for source, name in names.items():
            made = by_source[source, plan.codecs[name]]
            packed = self.agent / made["packed"]["digest"]
            with store.localised(packed.name) as path:
                packed.hardlink_to(path)
            down += made["packed"]["size"]
            shards.append(
                LocalShard(
                    block=name,
                    digest=made["digest"],
                    codec=made["codec"],
                    path=str(self.agent / made["digest"]),
                    size=made["size"],
                    packed=str(packed),
                )
            )
        words, wanted = random.Random(1), (train.steps or 1) * train.batch_size * plan.spec.task.max_length
        text = " ".join(f"w{words.randrange(2, VOCABULARY)}" for _ in range(wanted))
        (self.agent / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
        for file in files:
            with store.localised(file["digest"]) as path:
                (self.agent / file["name"]).hardlink_to(path)
        settings = TrainSettings(
            task="causal-lm", groups=[ParameterGroup(blocks=[plan.visited], learning_rate=1e-5)], steps=train.steps, batch_size=train.batch_size,
            max_length=plan.spec.task.max_length, seed=0, precision="bfloat16",
        )  # fmt: skip
        request = TrainRequest(
            assignment_id="a", files={f["name"]: str(self.agent / f["name"]) for f in files}, model_key="r", shards=shards, train=settings,
            data=DataSource(path=str(self.agent / "rows.jsonl")), delta_path=str(self.agent / "delta"), delta_codec="int8",
        )  # fmt: skip
        found = agent_does("--visit", request.model_dump_json())
        forecast = plan.agent.visits[0]
        self.note("visit", found, f"planned {plan.memory() / MB:.0f} MB; a step of a slow processor {plan.step_s:.0f} s")
        step_s = found.told["seconds"] / found.told["steps"]
        size = (self.agent / "delta").stat().st_size
        print(
            f"    trained {found.told['seconds']:.1f} s, {step_s:.1f} a step; loss {found.told['loss_first']:.3f} to {found.told['loss_last']:.3f}"
        )
        print(f"    fetched {down / MB:.0f} MB, planned {forecast.down / MB:.0f}; sends {size / MB:.0f} MB, planned {forecast.up / MB:.0f}")
        self.figures = {
            "visit_step_s": step_s, "down_plan_to_real": forecast.down / down, "up_plan_to_real": forecast.up / size,
            "memory_plan_to_real": plan.memory() / found.resident,
        }  # fmt: skip
        with store.writer() as writer, (self.agent / "delta").open("rb") as file:
            while chunk := file.read(CHUNK):
                writer.write(chunk)
        return str(writer.digest)

    def patch(self, applied: dict[str, Any], old: dict[str, Any]) -> None:
        """The way of an agent that holds the old version in 4 bits to the new one."""
        from fedcybgd.agent.messages import LocalPatch, LocalShard
        from fedcybgd.coordinator.storage import open_store

        new = next(s for s in applied["shards"] if s["codec"] == "int4")
        step = next(p for p in applied["patches"] if p["target"] == new["digest"])
        target = str(self.agent / new["digest"])
        store = open_store(self.store)
        with store.localised(step["digest"]) as path, store.localised(old["digest"]) as base:
            patch = LocalPatch(kind=step["kind"], path=str(path), weight=1.0, digest=new["digest"], target=target)
            shard = LocalShard(
                block=self.plan.visited, digest=new["digest"], codec="int4", path=target, size=new["size"], base=str(base), patches=[patch]
            )
            self.note(
                "agent's step by a patch",
                agent_does("--step", shard.model_dump_json()),
                f"{step['size'] / MB:.0f} MB instead of {new['packed']['size'] / MB:.0f}",
            )


def missing(plan: Plan, folder: Path, most_disk: float | None, visits: bool) -> str | None:
    """What this machine lacks for it, in words."""
    free = min(shutil.disk_usage(folder).free, most_disk * GB if most_disk else float("inf"))
    memory = (plan.agent.memory_needed if visits else plan.allowed()) + SPARE
    if free < plan.disk():
        return (
            f"{folder} may take {free / GB:.1f} GB, and about {plan.disk() / GB:.1f} are needed: name another --folder, or fewer --layers"
        )
    if (there := psutil.virtual_memory().available) < memory:
        return f"{there / GB:.1f} GB of memory are free, and about {memory / GB:.1f} are needed: fewer --layers, --batch or --tokens"
    return None


def main() -> None:
    if sys.argv[1:2] in (["--visit"], ["--step"]):
        print(here(*sys.argv[1:3]).model_dump_json())
        return
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=WIDTHS, default="7b")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--no-visit", action="store_true", help="a delta of random numbers instead of an agent's")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where it works (default: %(default)s)")
    parser.add_argument("--most-disk", type=float, metavar="GB", help="that it may take")
    options = parser.parse_args()
    from fedcybgd.coordinator.engine.entries import warm_up

    warm_up(1)
    plan = Plan(options.shape, options.layers, options.steps, options.batch, options.tokens)
    count = sum(b.num_parameters for b in plan.blocks)
    print(f"{count / GB:.2f} billion parameters in {len(plan.blocks)} blocks, {plan.bytes('exact') / GB:.1f} GB in bfloat16")
    if (why := missing(plan, options.folder, options.most_disk, not options.no_visit)) is not None:
        print(f"skipped: {why}")
        return
    print(f"  {'':22} {'resident':>9} {'private':>9}    {'wall':>8} {'CPU':>8}  {'disk':>8}        allowed: three times the largest block")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as name:
        path = Path7B(Path(name), plan, not options.no_visit)
        path.walk()
    figures = {"parameters": float(count), "most_disk_gb": path.most / GB, "planned_disk_gb": plan.disk() / GB, **path.figures}
    for step, (found, disk) in path.rows.items():
        key = step.replace(" ", "_").replace(",", "").replace("'", "")
        figures |= {
            f"{key}_mb": found.resident / MB,
            f"{key}_private_mb": found.private / MB,
            f"{key}_s": found.seconds,
            f"{key}_cpu_s": found.cpu,
            f"{key}_disk_gb": disk / GB,
        }
    finish(figures, {}, options.json)


if __name__ == "__main__":
    main()
