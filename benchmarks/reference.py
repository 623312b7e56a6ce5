"""The same schedule as a coordinator would run, in one bare process: no HTTP, no database, no other processes.

It is the floor that overhead is measured against, and what a run over HTTP must equal to the bit. Bytes are counted as agents with a
cache of their own would fetch and send them. What the run file asks for is read by `benchmarks.reading`, and not by the coordinator that is
judged: of it only the engine is taken, whose functions are judged by tests of their own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import device
from benchmarks.holdings import Holdings, Patches
from benchmarks.reading import Order, Reading
from fedcybgd.agent.fetching import cheapest
from fedcybgd.agent.messages import DataSource, LocalShard, TrainRequest
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain import compression
from fedcybgd.coordinator.domain.adapters_section import AdaptersSection
from fedcybgd.coordinator.domain.compression import BlockFacts, DoesNotFit
from fedcybgd.coordinator.domain.corrections_section import CorrectionsSection
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult, HeldOutRef
from fedcybgd.coordinator.domain.jobs.payloads import (
    AdaptersBase,
    ApplyPayload,
    Change,
    EncodedRef,
    ImportPayload,
    PreparePayload,
    Term,
)
from fedcybgd.coordinator.domain.model_blocks import StoredBlock
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.domain.run_file import CompressionSection
from fedcybgd.coordinator.engine.apply import apply
from fedcybgd.coordinator.engine.deltas import open_delta
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.evaluate import evaluate
from fedcybgd.coordinator.engine.import_model import import_model
from fedcybgd.coordinator.engine.prepare import prepare
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.manifests import FileRef, ShardRef
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings
from fedcybgd.shared.files.safetensors_header import MAX_NUMBER


@dataclass(frozen=True)
class Made:
    """A delta by its digest, and what is told of the labels and rows that it was trained on."""

    seat: int
    digest: str
    labels: list[int] | None
    rows: int
    moved: list[bool]
    """of each label, whether its row of a head is moved"""


@dataclass
class Reference:
    """A run in this process; `digests()` are what a coordinator must arrive at."""

    store: BlobStore
    spec: Reading
    file_refs: list[FileRef]
    stored: list[StoredBlock]
    blocks: list[ShardRef]
    trained: list[str]
    metrics: list[TrainMetrics] = field(default_factory=list)
    deltas: list[str] = field(default_factory=list)
    rounds_done: int = 0
    encoded: dict[tuple[str, str], EncodedRef] = field(default_factory=dict)
    patches: Patches = field(default_factory=Patches)
    holdings: dict[int, Holdings] = field(default_factory=dict)
    influence: dict[str, float] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)
    residuals: dict[tuple[int, str], Path] = field(default_factory=dict)
    tell_labels: bool = False
    """whether the agents tell how many rows of each label they trained on"""
    velocities: dict[str, str] = field(default_factory=dict)
    """block → digest of what the outer optimizer carries on"""

    @property
    def files(self) -> dict[str, Path]:
        return {f.name: self.store.path(f.digest) for f in self.file_refs}

    def digests(self) -> dict[str, str]:
        return {b.block: b.digest for b in self.blocks}

    def bytes_moved(self) -> int:
        return sum(h.down + h.up for h in self.holdings.values())

    def evaluate(self, held_out: Path) -> EvaluateResult:
        return evaluate(self.store, self.scoring(held_out))

    def scoring(self, held_out: Path) -> EvaluatePayload:
        """The present model, and rows to score it on."""
        digest = _store_file(self.store, held_out)
        task = self.spec.task
        return EvaluatePayload(
            after_rounds=self.rounds_done, task=task.kind, num_labels=task.num_labels, label_names=task.label_names,
            max_length=task.max_length, files=self.file_refs, blocks=self.blocks,
            held_out=HeldOutRef(digest=digest, name=held_out.name, columns={}),
        )  # fmt: skip

    def plan(self, trained: set[str]) -> compression.Plan:
        """The codec of every block for a visit, as the policy of the run file has it."""
        if self.spec.compression["policy"] != "hybrid":
            return self.spec.codecs({s.name: s.kind for s in self.stored}, trained)
        facts = [
            BlockFacts(s.name, s.kind, s.num_parameters, version=b.version, influence=self.influence.get(s.name))
            for s, b in zip(self.stored, self.blocks, strict=True)
        ]
        plan = compression.plan(CompressionSection.model_validate(self.spec.compression), facts, trained)
        assert not isinstance(plan, DoesNotFit), plan.reason
        return plan

    def shard(self, encoder: ShardEncoder, block: ShardRef, codec: str, held: set[str]) -> ShardRef:
        """The block in a codec, with the patches that lead to it from what is held."""
        key = (block.digest, codec)
        if key not in self.encoded:
            self.encoded[key] = encoder.encode(*key)
        made = self.encoded[key]
        way = self.patches.way(made.digest, held, made.packed.size)
        return ShardRef(
            block=block.block, version=block.version, codec=codec, digest=made.digest, size=made.size, packed=made.packed, patches=way
        )


def begin(folder: Path, model: Path, run_file: Mapping[str, Any]) -> Reference:
    """Import the model and prepare the run, as the coordinator's engine does."""
    spec = Reading(run_file)
    store = open_store(folder / "blobs")
    imported = import_model(store, ImportPayload(source=str(model)))
    payload = PreparePayload(
        config=imported.config, files=imported.files, blocks=imported.blocks, task=spec.task.kind, num_labels=spec.task.num_labels,
        label_names=spec.task.label_names, max_length=spec.task.max_length, patterns=spec.schedule["blocks"], always=spec.schedule["always"],
        layers_per_block=spec.schedule["layers_per_block"], seed=spec.seed, held_out=None,
        adapters=AdaptersSection.model_validate(spec.adapters) if spec.adapters else None,
        corrections=CorrectionsSection.model_validate(spec.corrections) if spec.corrections else None, head_start=spec.schedule["head_start"],
    )  # fmt: skip
    prepared = prepare(store, payload)
    blocks = [ShardRef(block=b.name, version=0, codec="exact", digest=b.digest, size=b.size) for b in prepared.blocks]
    return Reference(store, spec, prepared.files, prepared.blocks, blocks, prepared.trained)


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
    spec = reference.spec
    scratch.mkdir(parents=True, exist_ok=True)
    visitors = visitors or [device.visitor() for _ in partitions]
    config = next(f for f in reference.file_refs if f.name == "config.json")
    encoder = ShardEncoder(reference.store, config, spec.task.kind)
    began = time.monotonic()
    first = reference.rounds_done
    last = spec.rounds(reference.trained) if rounds is None else first + rounds
    for number in range(first, last):
        terms: dict[str, list[Made]] = {}
        corrections: dict[str, list[tuple[int, Term]]] = {}
        cycle = spec.cycle(reference.trained, number)
        orders = spec.round(reference.trained, len(partitions), number, reference.importance)
        matrices = {s.name: [t.name for t in s.tensors if t.linear] for s in reference.stored}
        for seat, order in enumerate(orders):
            told = spec.corrected(order, reference.trained, matrices)
            asked = replace(order, told={**order.told, "corrections": told})
            made = _visit(reference, encoder, visitors[order.agent], partitions[order.agent], asked, seat, scratch)
            for name in order.trained:
                terms.setdefault(name, []).append(made)
            for name, own in matrices.items() if told is not None else ():
                if set(own) & set(told["matrices"]):
                    term = Term(digest=made.digest, weight=spec.of_corrections(len(orders), cycle), scale=told["scale"])
                    corrections.setdefault(name, []).append((seat, term))
        _apply(reference, number, terms, corrections, len(partitions), len(orders))
        reference.rounds_done = number + 1
        after_round(number)
    return time.monotonic() - began


def _visit(reference: Reference, encoder: ShardEncoder, visitor: Visitor, data: Path, order: Order, seat: int, scratch: Path) -> Made:
    """One visit; its delta is in the store."""
    agent, spec, store = order.agent, reference.spec, reference.store
    trained = set(order.trained)
    codecs = reference.plan(trained)
    held = reference.holdings.setdefault(agent, Holdings())
    shards = [reference.shard(encoder, b, codecs[b.block], held.digests) for b in reference.blocks if codecs[b.block] != "dropped"]
    for ref in shards:
        held.down += sum(blob.size for blob in cheapest(ref, held.digests.__contains__).blobs if blob.digest not in held.digests)
        held.digests.add(ref.digest)
    for file in reference.file_refs:
        held.down += 0 if file.digest in held.digests else file.size
        held.digests.add(file.digest)
    delta, left = scratch / "delta.packed", scratch / f"left-{agent}"
    carried = {b: str(path) for b in trained if (path := left / f"{b}.safetensors").exists()}
    feedback = spec.delta["error_feedback"]
    request = TrainRequest(
        assignment_id=f"{order.round}-{order.name}", files={n: str(p) for n, p in reference.files.items()}, model_key=f"adapters: {spec.adapters}",
        shards=[LocalShard(block=r.block, digest=r.digest, codec=r.codec, path=str(store.path(r.digest)), size=r.size) for r in shards],
        dropped=[name for name, codec in codecs.items() if codec == "dropped"], train=TrainSettings.model_validate({**order.told, **device.SETTINGS}),
        data=DataSource(path=str(data), tell_labels=reference.tell_labels),
        delta_path=str(delta), delta_codec=spec.delta["codec"], residuals=carried if feedback else {}, new_residuals=str(left) if feedback else None,
    )  # fmt: skip
    reference.metrics.append(visitor.visit(request, lambda _: None, lambda: False))
    held.up += delta.stat().st_size
    held.digests.add(digest := _store_file(store, delta))
    reference.deltas.append(digest)
    return Made(seat, digest, reference.metrics[-1].label_counts, reference.metrics[-1].rows, _moved(reference, digest))


def _moved(reference: Reference, delta: str) -> list[bool]:
    """Of each label whether a delta moves its row: of the last matrix of the head with so many."""
    labels = reference.spec.task.num_labels
    of_head = [t for stored in reference.stored if stored.name == "head" for t in stored.tensors]
    matrix = next((t for t in reversed(of_head) if len(t.shape) == 2 and t.shape[0] == labels), None)
    if matrix is None:
        return []
    with open_delta(reference.store, delta, MAX_NUMBER, frozenset({matrix.name})) as file:
        rows = file.tensor(matrix.name, (matrix.shape[0], matrix.shape[1])) if matrix.name in file.names else None
    return [] if rows is None else [bool(row.any()) for row in rows]


def _apply(
    reference: Reference,
    number: int,
    terms: dict[str, list[Made]],
    corrections: dict[str, list[tuple[int, Term]]],
    agents: int,
    seats: int,
) -> None:
    spec = reference.spec
    changes = []
    for block in reference.blocks:
        found, corrected = terms.get(block.block, []), corrections.get(block.block, [])
        if found or corrected:
            weights = (
                spec.weights(
                    block.block,
                    [made.labels for made in found],
                    [made.rows for made in found],
                    spec.cycle(reference.trained, number),
                    [made.moved for made in found],
                )
                if found
                else []
            )
            trained = [
                (made.seat, Term(digest=made.digest, weight=weight, rows=rows)) for made, (weight, rows) in zip(found, weights, strict=True)
            ]
            added = [term for _, term in sorted([*trained, *corrected], key=lambda each: each[0])]
            outer = Outer(**spec.outer) if spec.outer else None
            changes.append(Change(block=block, terms=added, outer=outer, velocity=reference.velocities.get(block.block)))
    factored = next((change for change in changes if change.block.block == "adapters"), None)
    if factored is not None and spec.adapters and spec.adapters["combine"] == "exact" and [term.weight for term in factored.terms] != [1.0]:
        names = {t.name for stored in reference.stored for t in stored.tensors if stored.name == "adapters"}
        beside = AdaptersBase(block=factored.block, scale=spec.adapters["alpha"] / spec.adapters["rank"])
        for block, stored in zip(reference.blocks, reference.stored, strict=True):
            if any(f"{t.name.removesuffix('.weight')}.adapter_left" in names for t in stored.tensors):
                changes.append(Change(block=block, terms=factored.terms, beside=beside))
    sources = {change.block.digest for change in changes}
    before = [ref for (source, _), ref in sorted(reference.encoded.items()) if source in sources]
    config = next(f for f in reference.file_refs if f.name == "config.json")
    names = {change.block.digest: change.block.block for change in changes}
    steps = reference.patches.before(number, agents, seats, [(names[ref.source], ref) for ref in before])
    payload = ApplyPayload(round=number, changes=changes, before=before, steps=steps, config=config, task=spec.task.kind)
    changed = apply(reference.store, payload)
    reference.velocities |= changed.velocities
    reference.encoded |= {(ref.source, ref.codec): ref for ref in changed.shards}
    reference.patches.add(number, names.values(), changed.patches)
    new = {b.block: b for b in changed.blocks}
    reference.blocks = [new.get(b.block, b) for b in reference.blocks]


def _store_file(store: BlobStore, path: Path) -> str:
    digest = digest_of_file(path)
    if not store.has(digest):
        with store.writer() as writer:
            writer.write(path.read_bytes())
    return digest


def measure_influence(reference: Reference, held_out: Path) -> None:
    """Have the influence of the layers measured on the first held-out rows, as policies want it."""
    from fedcybgd.coordinator.domain.jobs.measurements import InfluencePayload
    from fedcybgd.coordinator.engine.influence import influence

    reference.influence = influence(reference.store, InfluencePayload.model_validate(_calibration(reference, held_out))).influence


def measure_importance(reference: Reference, held_out: Path) -> None:
    """Have the importance of the visited blocks measured on them, for `order: importance`."""
    from fedcybgd.coordinator.domain.jobs.measurements import ImportancePayload
    from fedcybgd.coordinator.engine.importance import importance

    payload = ImportancePayload.model_validate(_calibration(reference, held_out) | {"visited": reference.trained})
    reference.importance = importance(reference.store, payload).importance


def _calibration(reference: Reference, held_out: Path) -> dict[str, Any]:
    task = reference.spec.task
    return {
        "task": task.kind, "num_labels": task.num_labels, "label_names": task.label_names, "max_length": task.max_length,
        "files": reference.file_refs, "blocks": reference.blocks, "rows": reference.spec.compression["calibration_rows"],
        "held_out": HeldOutRef(digest=_store_file(reference.store, held_out), name=held_out.name, columns={}),
    }  # fmt: skip
