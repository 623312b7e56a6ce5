"""Fills a migrated database with the history of a busy coordinator: one long run of a 70B model and thousands of agents.

Everything has the shape and the size of what the services write. The rounds to come are opened by the services themselves.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert, literal, select, union_all
from sqlalchemy.orm import Session

from benchmarks.busy_model import HIDDEN, INNER, VOCABULARY, agent_id, fake, identifier, numel, shapes
from fedcybgd.coordinator.db.base import Base, Database, utcnow
from fedcybgd.coordinator.db.models import (
    Agent,
    Assignment,
    Block,
    BlockVersion,
    EncodedShard,
    Evaluation,
    Event,
    Exposure,
    Fidelity,
    HeldOut,
    Job,
    Model,
    Patch,
    Readiness,
    Round,
    Run,
    StoredManifest,
    Traffic,
    TrafficTotal,
)
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.band import BlockDelta
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState
from fedcybgd.coordinator.domain.jobs.registry import JOBS
from fedcybgd.coordinator.domain.model_blocks import StoredBlock, TensorShape
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.path import open_round
from fedcybgd.coordinator.services.records import keys
from fedcybgd.coordinator.storage import open_store
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.manifests import FileRef, Manifest
from fedcybgd.shared.contract.measured import FidelityNumbers, Score
from fedcybgd.shared.contract.training import TrainMetrics, TrainSettings

BIG, WAVE, ABSENT, DRAFT, OLD = "big", "wave", "absent", "draft", "old"
EVERY = timedelta(minutes=2)
"""Between two rounds."""
OLD_RUNS, CHUNK = 30, 2000


@dataclass(frozen=True)
class Seeded:
    operator_key: str
    agent_keys: list[str]
    """by number; the last agent is the absent one"""
    export_id: str
    real: str
    """digest of a shard of the run that is really in the store"""
    size: int


class Seed:
    def __init__(self, database: Database, blobs: Path, agents: int, rounds: int, blocks: int) -> None:
        self.database, self.store = database, open_store(blobs)
        self.agents, self.rounds = agents, rounds
        self.shapes = shapes(blocks)
        self.names = list(self.shapes)
        self.now = utcnow()
        self.ids = [agent_id(number) for number in range(agents)]
        self.run_id = identifier("run", BIG)
        self.config = self.blob(b'{"model_type": "llama"}')
        self.rows = self.blob(b'{"text": "held out"}\n')
        self.norm = self.blob(b"norm" * 16384)
        self.files = [FileRef(name="config.json", digest=self.config, size=23)] + [
            FileRef(name=name, digest=fake(name), size=10_000) for name in ("tokenizer.json", "tokenizer_config.json")
        ]
        self.file_dicts = [file.model_dump() for file in self.files]

    def blob(self, content: bytes) -> str:
        with self.store.writer() as writer:
            writer.write(content)
        return writer.digest

    def fill(self) -> Seeded:
        with self.database.transaction() as session:
            key = operators.recover(session, operators.FIRST, self.now)
            agent_keys = list(self._agents(session))
            self._model(session)
            self._old_runs(session)
            self._big(session)
        for first in range(0, self.rounds, CHUNK):
            with self.database.transaction() as session:
                self._history(session, range(first, min(first + CHUNK, self.rounds)))
        with self.database.transaction() as session:
            self._ledgers(session)
        with self.database.transaction() as session:
            export_id = self._export(session)
            for name, change in self._drafts().items():
                self._run(session, name, change, RunState.DRAFT, [])
        with self.database.transaction() as session:
            open_round.open_next(session, session.get_one(Run, self.run_id), utcnow())
        return Seeded(key, agent_keys, export_id, self.norm, 65536)

    # ---- what there is ----------------------------------------------------------------------------------------------

    def _agents(self, session: Session) -> Iterator[str]:
        device, limits = DeviceInfo(name="EPYC", cores=8, memory_bytes=64 << 30), DeclaredLimits()
        rows = []
        for number, identity in enumerate(self.ids):
            key = f"{keys.AGENT}{number:043}"
            name = ABSENT if number == self.agents - 1 else f"agent-{number:05}"
            rows.append({
                "id": identity, "name": name, "key_hash": keys.key_hash(key), "state": AgentState.ACTIVE, "device": device, "limits": limits,
                "version": "1", "enrolled_at": self.now, "last_seen_at": self.now,
            })  # fmt: skip
            yield key
        session.execute(insert(Agent), rows)

    def _model(self, session: Session) -> None:
        config = {
            "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": len(self.names) - 3,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": VOCABULARY, "tie_word_embeddings": False,
            "max_position_embeddings": 8192, "architectures": ["LlamaForCausalLM"],
        }  # fmt: skip
        blocks = [
            StoredBlock(name=name, kind=kind, digest=self.exact(name, 0), size=2 * numel(tensors), num_parameters=numel(tensors),
                        tensors=[TensorShape(name=tensor, shape=shape) for tensor, shape in tensors.items()])
            for name, (kind, tensors) in self.shapes.items()
        ]  # fmt: skip
        session.add(
            Model(id=identifier("mod", BIG), name="llama-70b", source="meta/llama-70b", state="ready", config=config, files=self.files,
                  blocks=blocks, left_out=[], num_parameters=sum(b.num_parameters for b in blocks), created_at=self.now)
        )  # fmt: skip
        session.add(HeldOut(digest=self.rows, name="rows.jsonl", size=21, created_at=self.now))
        session.flush()

    def spec(self, name: str, **schedule: Any) -> RunFile:
        cycles = self.rounds // len(self.names) + 100
        return RunFile.model_validate({
            "name": name, "model": "llama-70b", "task": {"kind": "causal-lm", "max_length": 1024}, "train": {"steps": 100},
            "schedule": {"cycles": cycles, **schedule}, "evaluate": {"held_out": "rows.jsonl", "digest": self.rows},
        })  # fmt: skip

    def _drafts(self) -> dict[str, RunFile]:
        only = self.spec(ABSENT, reassign_after_s=1).model_dump(mode="json") | {"agents": [ABSENT]}
        return {WAVE: self.spec(WAVE, wave=len(self.names)), ABSENT: RunFile.model_validate(only), DRAFT: self.spec(DRAFT)}

    def _run(self, session: Session, name: str, spec: RunFile, state: RunState, participants: list[str], **more: Any) -> str:
        """A prepared run with its blocks."""
        run_id = identifier("run", name)
        session.add(
            Run(id=run_id, name=name, model_id=identifier("mod", BIG), spec=spec, state=state, prepared=True,
                files=self.files, notes=[], trained_blocks=self.names, participants=participants, created_at=self.now, rounds_done=self.rounds if name == BIG else 0,
                rounds_total=spec.schedule.cycles * len(self.names) // spec.schedule.wave, **more)
        )  # fmt: skip
        session.flush()
        session.execute(insert(Block), [
            {"run_id": run_id, "name": block, "position": position, "kind": kind, "version": self.version(run_id, block),
             "digest": self.exact(block, self.version(run_id, block)), "size": 4 * numel(tensors), "num_parameters": numel(tensors),
             "tensors": [TensorShape(name=tensor, shape=shape) for tensor, shape in tensors.items()]}
            for position, (block, (kind, tensors)) in enumerate(self.shapes.items())
        ])  # fmt: skip
        return run_id

    def _old_runs(self, session: Session) -> None:
        began = self.now - 400 * timedelta(days=1)
        for number in range(OLD_RUNS):
            at = began + number * timedelta(days=10)
            name = f"{OLD}-{number}"
            run_id, spec = identifier("run", name), self.spec(name)
            session.add(
                Run(id=run_id, name=name, model_id=identifier("mod", BIG), spec=spec, state=RunState.COMPLETED, prepared=True,
                    files=self.files, notes=[], trained_blocks=self.names, participants=self.ids, rounds_total=len(self.names),
                    rounds_done=len(self.names), created_at=at,
                    started_at=at, ended_at=at + EVERY * len(self.names))
            )  # fmt: skip
            session.flush()
            session.execute(insert(Round), [self.round(run_id, i, at + i * EVERY) for i in range(len(self.names))])

    def _big(self, session: Session) -> None:
        began = self.now - self.rounds * EVERY
        self._run(session, BIG, self.spec(BIG), RunState.RUNNING, self.ids, started_at=began)
        session.execute(insert(Readiness), [
            {"agent_id": agent, "run_id": self.run_id, "fits": True, "rows": 1000, "exact": True, "refused": [], "at": self.now}
            for agent in self.ids
        ])  # fmt: skip
        # Those of superseded versions are forgotten by the coordinator.
        shards: list[dict[str, Any]] = []
        patches: list[dict[str, Any]] = []
        for name in self.names:
            present = self.version(self.run_id, name)
            for version in {0, present}:
                shards += [self.encoded(name, version, codec) for codec in ("exact", "int8")]
            for version in range(max(1, present - 3), present + 1):
                patches += [
                    {"target": self.coded(name, version, codec), "base": self.coded(name, version - 1, codec), "kind": "difference",
                     "digest": fake("patch", name, version, codec), "size": 1000, "weight": 1.0}
                    for codec in ("exact", "int8")
                ]  # fmt: skip
        session.execute(insert(EncodedShard), shards)
        if patches := [patch for patch in patches if patch["target"] != patch["base"]]:
            session.execute(insert(Patch), patches)

    # ---- shards -----------------------------------------------------------------------------------------------------

    def version(self, run_id: str, block: str) -> int:
        """How often a block was visited."""
        if run_id != self.run_id:
            return 0
        whole, part = divmod(self.rounds, len(self.names))
        return whole + (self.names.index(block) < part)

    def exact(self, block: str, version: int) -> str:
        return fake("exact", block, version)

    def coded(self, block: str, version: int, codec: str) -> str:
        return self.norm if block == "norm" else fake(codec, "coded", block, version)

    def encoded(self, block: str, version: int, codec: str) -> dict[str, Any]:
        size = 65536 if block == "norm" else numel(self.shapes[block][1]) * (4 if codec == "exact" else 1)
        return {
            "source": self.exact(block, version), "codec": codec, "digest": self.coded(block, version, codec), "size": size,
            "packed_digest": fake("packed", codec, block, version), "packed_size": size * 4 // 5,
        }  # fmt: skip

    # ---- what was done ----------------------------------------------------------------------------------------------

    def round(self, run_id: str, number: int, at: datetime) -> dict[str, Any]:
        cycle, place = divmod(number, len(self.names))
        seat = Seat(round=number, number=0, cycle=cycle, blocks=(self.names[place],), agent=None, learning_rate=3e-4,
                    always_learning_rate=3e-4, seed=number)  # fmt: skip
        return {
            "run_id": run_id, "number": number, "cycle": cycle, "seats": [seat], "blocks": [self.names[place]], "state": RoundState.CLOSED,
            "loss_before": 2.0, "loss_after": 1.9, "opened_at": at, "closed_at": at + EVERY,
        }  # fmt: skip

    def agent_of(self, number: int) -> str:
        cycle, place = divmod(number, len(self.names))
        return self.ids[(place + cycle) % self.agents]

    def refs(self, number: int, emulator: bool) -> list[dict[str, Any]]:
        """The blocks before a round: exact as they are, or as the emulator of its visit had them."""
        found = []
        for place, name in enumerate(self.names):
            version = number // len(self.names) + (place < number % len(self.names))
            size = numel(self.shapes[name][1])
            if not emulator:
                found.append({"block": name, "version": version, "codec": "exact", "digest": self.exact(name, version), "size": 4 * size,
                              "packed": None, "patches": []})  # fmt: skip
                continue
            codec = "exact" if place == number % len(self.names) else "int8"
            steps = [
                {"digest": fake("patch", name, v, codec), "size": 1000, "kind": "difference", "base": self.coded(name, v - 1, codec), "weight": 1.0}
                for v in range(version, max(0, version - 2), -1)
            ]  # fmt: skip
            found.append({
                "block": name, "version": version, "codec": codec, "digest": self.coded(name, version, codec), "size": size,
                "packed": {"digest": fake("packed", codec, name, version), "size": size}, "patches": steps,
            })  # fmt: skip
        return found

    def _history(self, session: Session, numbers: range) -> None:
        began = self.now - self.rounds * EVERY
        rows: dict[type[Base], list[dict[str, Any]]] = {
            table: [] for table in (StoredManifest, Round, Assignment, Job, Fidelity, Event, Evaluation, BlockVersion)
        }
        for number in numbers:
            at, block = began + number * EVERY, self.names[number % len(self.names)]
            emulator, real = self.refs(number, True), self.refs(number, False)
            rows[Round].append(self.round(self.run_id, number, at))
            manifest = Manifest.model_validate({"files": self.file_dicts, "blocks": emulator})
            rows[StoredManifest].append({"digest": fake("manifest", number), "content": manifest})
            rows[Assignment].append(self._assignment(number, block, at))
            rows[Job] += self._jobs(number, block, at, emulator, real)
            if number >= self.rounds - len(self.names):  # the present versions
                made = number // len(self.names) + 1
                rows[BlockVersion].append({
                    "run_id": self.run_id, "block": block, "version": made, "origin": "applied", "digest": self.exact(block, made), "size": 1000,
                    "parent": made - 1, "round": number, "kept": False, "exact": False, "made_at": at,
                })  # fmt: skip
            codecs = {ref["block"]: ref["codec"] for ref in emulator}
            metrics = {
                "plan": "int8: others",
                "cosine": 0.99,
                "cosine_worst": 0.98,
                "loss_real": 1.9,
                "loss_emulator": 1.9,
                "rows": 64,
                "seconds": 1.0,
            }
            rows[Fidelity].append({"run_id": self.run_id, "round": number, "block": block, "plan": fake(block), "codecs": codecs,
                                   "metrics": FidelityNumbers.model_validate(metrics), "created_at": at})  # fmt: skip
            rows[Event] += [{"at": at, "level": "info", "code": "round_closed", "message": f"round {number}", "run_id": self.run_id}] * 2
            if number % len(self.names) == 0:
                rows[Evaluation].append({"run_id": self.run_id, "after_rounds": number, "created_at": at,
                                         "metrics": Score(loss=2.0, accuracy=None, rows=1000, seconds=9.0)})  # fmt: skip
        for table, values in rows.items():
            if values:
                session.execute(insert(table), values)

    def _assignment(self, number: int, block: str, at: datetime) -> dict[str, Any]:
        train = {
            "steps": 100, "epochs": None, "batch_size": 16, "warmup_steps": 5, "weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "auto",
            "optimizer": "adamw", "task": "causal-lm", "num_labels": None, "label_names": None, "max_length": 1024, "seed": number,
            "groups": [{"blocks": [block], "learning_rate": 3e-4}],
        }  # fmt: skip
        metrics = {
            "steps": 100, "rows": 1600, "tokens": 1_000_000, "loss_first": 2.0, "loss_last": 1.9, "seconds": 60.0, "tokens_per_s": 1e4,
            "peak_memory_bytes": 1 << 33, "started_at": None, "bytes_down": 1 << 30, "bytes_up": 1 << 29, "delta_error": 0.01,
        }  # fmt: skip
        agent = self.agent_of(number)
        return {
            "id": identifier("asg", number), "run_id": self.run_id, "round": number, "seat": 0, "blocks": [block], "state": AssignmentState.ACCEPTED,
            "attempt": 1, "failures": 0, "meant_for": agent, "excluded": [], "agent_id": agent, "waiting_since": at, "leased_at": at,
            "submitted_at": at, "judged_at": at, "manifest_digest": fake("manifest", number),
            "train": TrainSettings.model_validate(train),
            "progress": Progress(phase="sending", step=100, steps=100, loss=1.9), "metrics": TrainMetrics.model_validate(metrics),
            "delta_digest": fake("delta", number), "delta_size": 1 << 29, "applied": True,
            "measured": {block: BlockDelta(norm=1.0, base_norm=90.0, size=1000, sketch="A" * 342 + "==")},
        }  # fmt: skip

    def _jobs(
        self, number: int, block: str, at: datetime, emulator: list[dict[str, Any]], real: list[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Judged, applied, and measured twice."""
        this = next(ref for ref in real if ref["block"] == block)
        held_out = {"digest": self.rows, "name": "rows.jsonl", "columns": {}, "how": {}}
        measured = {"task": "causal-lm", "num_labels": None, "label_names": None, "max_length": 1024, "files": self.file_dicts, "blocks": real,
                    "held_out": held_out, "rows": 64}  # fmt: skip
        fidelity = measured | {
            "plan": "int8: others", "block": block, "emulator": emulator, "dropped": [], "batch_size": 16, "round": number,
            "codecs": {ref["block"]: ref["codec"] for ref in emulator},
        }  # fmt: skip
        delta = fake("delta", number)
        payloads: dict[JobKind, dict[str, Any]] = {
            JobKind.FIDELITY: fidelity,
            JobKind.ADMIT: {"assignment_id": identifier("asg", number), "delta": delta, "blocks": [this], "always": [],
                            "rules": {"max_relative_norm": 10.0}},
            JobKind.APPLY: {"round": number, "changes": [{"block": this, "terms": [{"digest": delta, "weight": 1.0}], "codecs": ["int8"]}],
                            "assignments": [identifier("asg", number)], "config": self.file_dicts[0], "task": "causal-lm", "before": []},
            JobKind.LOSS: measured | {"after_rounds": number + 1},
        }  # fmt: skip
        results: dict[JobKind, dict[str, Any]] = {
            JobKind.FIDELITY: {"plan": "int8: others", "block": block, "cosine": 0.99, "cosine_worst": 0.98, "loss_real": 1.9,
                               "loss_emulator": 1.9, "rows": 64, "seconds": 1.0},
            JobKind.ADMIT: {"rejected_because": None, "norms": {block: 0.1}},
            JobKind.APPLY: {"blocks": [this], "shards": [], "patches": []},
            JobKind.LOSS: {"rows": 64, "loss": 1.9, "accuracy": None, "seconds": 1.0},
        }  # fmt: skip
        for kind, payload in payloads.items():
            yield {
                "id": identifier("job", kind, number), "kind": kind, "lane": JOBS[kind].lane, "subject": self.run_id, "payload_json": payload,
                "state": JobState.DONE, "tries": 1, "result_json": results[kind], "created_at": at, "ended_at": at,
            }  # fmt: skip

    def _ledgers(self, session: Session) -> None:
        """Every visit has brought its agent every block; made of the assignments, in the database."""
        done = (Assignment.run_id == self.run_id) & Assignment.applied
        codec = partial(literal, type_=Exposure.codec.type)
        for exact in (True, False):
            visited = Assignment.round % len(self.names)
            chosen = (Block.position == visited) if exact else (Block.position != visited)
            sent = select(
                Assignment.agent_id, Assignment.run_id, Block.name, Assignment.round, codec("exact" if exact else "int8"), Assignment.leased_at
            ).join(Block, (Block.run_id == Assignment.run_id) & chosen).where(done)  # fmt: skip
            session.execute(insert(Exposure).from_select(["agent_id", "run_id", "block", "version", "codec", "first_at"], sent))
        sizes = {"shard": 1 << 30, "patch": 1 << 20, "file": 20_000, "delta": 1 << 29}
        counted = [
            select(Assignment.run_id, Assignment.round, Assignment.agent_id, literal(kind), literal(size)).where(done)
            for kind, size in sizes.items()
        ]
        session.execute(insert(Traffic).from_select(["run_id", "round", "agent_id", "kind", "bytes"], union_all(*counted)))
        session.execute(insert(TrafficTotal), [
            {"run_id": self.run_id, "kind": kind, "bytes": size * self.rounds} for kind, size in sizes.items()
        ])  # fmt: skip

    def _export(self, session: Session) -> str:
        export_id = identifier("job", "export")
        real = self.refs(self.rounds, False)
        session.add(
            Job(id=export_id, kind=JobKind.EXPORT, lane=JOBS[JobKind.EXPORT].lane, subject=self.run_id, state=JobState.DONE, tries=1,
                payload_json={"after_rounds": self.rounds, "task": "causal-lm", "files": self.file_dicts, "blocks": real},
                result_json={"after_rounds": self.rounds, "files": self.file_dicts[:1]}, created_at=self.now, ended_at=self.now)
        )  # fmt: skip
        return export_id


def meant(seeded: Seeded, rounds: int, blocks: int) -> list[int]:
    """Numbers of the agents, those first for whom no visit of any run is meant."""
    cycle, place = divmod(rounds, blocks)
    agents = len(seeded.agent_keys)
    chosen = {(place + cycle) % agents, *range(min(blocks, agents)), agents - 1}
    return [number for number in itertools.chain(range(agents)) if number not in chosen]
