"""The same schedule as a coordinator would run, in one bare process: no HTTP, no database, no other processes.

It is the floor that overhead is measured against, and what a run over HTTP must equal to the bit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.messages import DataSource, LocalShard, TrainRequest
from agent.training.visit import Visitor
from coordinator.domain.job import (
    ApplyPayload,
    EvaluatePayload,
    EvaluateResult,
    HeldOutRef,
    ImportPayload,
    PreparePayload,
)
from coordinator.domain.run_file import RunFile
from coordinator.domain.schedule import rounds_in, visit
from coordinator.engine.apply import apply
from coordinator.engine.evaluate import evaluate
from coordinator.engine.import_model import import_model
from coordinator.engine.prepare import prepare
from coordinator.services.rounds import train_settings
from coordinator.storage import BlobStore, open_store
from shared.protocol import ShardRef, TrainMetrics


@dataclass
class Reference:
    """A run in this process; `digests()` are what a coordinator must arrive at."""

    store: BlobStore
    spec: RunFile
    files: dict[str, Path]
    payload: PreparePayload
    blocks: list[ShardRef]
    trained: list[str]
    metrics: list[TrainMetrics] = field(default_factory=list)
    deltas: list[str] = field(default_factory=list)

    def digests(self) -> dict[str, str]:
        return {b.block: b.digest for b in self.blocks}

    def evaluate(self, held_out: Path) -> EvaluateResult:
        digest = _store_file(self.store, held_out)
        task = self.spec.task
        return evaluate(
            self.store,
            EvaluatePayload(
                after_rounds=len(self.metrics), task=task.kind, num_labels=task.num_labels, label_names=task.label_names, max_length=task.max_length,
                files=self._file_refs, blocks=self.blocks, held_out=HeldOutRef(digest=digest, name=held_out.name, columns={}),
            ),
        )  # fmt: skip

    _file_refs: list = field(default_factory=list)  # type: ignore[type-arg]


def begin(folder: Path, model: Path, spec: RunFile) -> Reference:
    """Import the model and prepare the run, as the coordinator's engine does."""
    store = open_store(folder / "blobs")
    imported = import_model(store, ImportPayload(source=str(model)))
    payload = PreparePayload(
        config=imported.config, files=imported.files, blocks=imported.blocks, task=spec.task.kind, num_labels=spec.task.num_labels,
        label_names=spec.task.label_names, max_length=spec.task.max_length, patterns=spec.schedule.blocks, always=spec.schedule.always,
        layers_per_block=spec.schedule.layers_per_block, seed=spec.seed, held_out=None,
    )  # fmt: skip
    prepared = prepare(store, payload)
    blocks = [ShardRef(block=b.name, version=0, codec="exact", digest=b.digest, size=b.size) for b in prepared.blocks]
    files = {f.name: store.path(f.digest) for f in prepared.files}
    reference = Reference(store, spec, files, payload, blocks, prepared.trained)
    reference._file_refs = prepared.files
    return reference


def run(
    reference: Reference,
    partitions: Sequence[Path],
    scratch: Path,
    rounds: int | None = None,
    visitors: Sequence[Visitor] | None = None,
    after_round: Callable[[int], None] = lambda _: None,
) -> float:
    """Do the visits one after another, agent i on `partitions[i]`; returns the seconds they took.

    One visitor for each agent, as each agent keeps its own data and model warm; they share this process.
    """
    spec, store = reference.spec, reference.store
    scratch.mkdir(parents=True, exist_ok=True)
    visitors = visitors or [Visitor("cpu") for _ in partitions]
    agents = [str(i) for i in range(len(partitions))]
    began = time.monotonic()
    first = len(reference.metrics)
    last = rounds_in(spec, reference.trained) if rounds is None else first + rounds
    for number in range(first, last):
        plan = visit(spec, reference.trained, agents, number)
        assert plan.agent is not None, "a bare process has no notion of who comes first"
        settings = train_settings(spec, plan)
        delta = scratch / "delta.safetensors"
        request = TrainRequest(
            assignment_id=str(number), files={n: str(p) for n, p in reference.files.items()}, model_key="reference",
            shards=[LocalShard(block=b.block, digest=b.digest, codec=b.codec, path=str(store.path(b.digest))) for b in reference.blocks],
            train=settings, data=DataSource(path=str(partitions[int(plan.agent)])), delta_path=str(delta),
        )  # fmt: skip
        reference.metrics.append(visitors[int(plan.agent)].visit(request, lambda _: None, lambda: False))
        names = {name for group in settings.groups for name in group.blocks}
        digest = _store_file(store, delta)
        reference.deltas.append(digest)
        changed = apply(
            store, ApplyPayload(round=number, blocks=[b for b in reference.blocks if b.block in names], deltas=[digest], weights=[1.0])
        )
        new = {b.block: b for b in changed.blocks}
        reference.blocks = [new.get(b.block, b) for b in reference.blocks]
        after_round(number)
    return time.monotonic() - began


def _store_file(store: BlobStore, path: Path) -> str:
    with store.writer() as writer:
        writer.write(path.read_bytes())
    return writer.digest
