"""The story of a run, told by the services alone: what is asked of agents and of the engine, and when; nobody trains or computes.

The engine is played: what it would measure is always the same. A run file that says something else must make another story.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment, HeldOut, Job, Model, Round, Run
from fedcybgd.coordinator.domain.admission import BlockNumbers, judge_numbers
from fedcybgd.coordinator.domain.band import BlockDelta
from fedcybgd.coordinator.domain.jobs.candidates import ConcludePayload, ConcludeResult
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState
from fedcybgd.coordinator.domain.jobs.measurements import (
    EvaluatePayload,
    EvaluateResult,
    FidelityPayload,
    FidelityResult,
    ImportanceResult,
    InfluenceResult,
)
from fedcybgd.coordinator.domain.jobs.payloads import (
    AdmitPayload,
    AdmitResult,
    ApplyPayload,
    ApplyResult,
    EncodedRef,
    EncodePayload,
    EncodeResult,
    GateResult,
    PatchMade,
    PreparePayload,
    PrepareResult,
)
from fedcybgd.coordinator.domain.model_blocks import StoredBlock, TensorShape
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.shapes import BlockShape, blocks_of_run
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.agents import offers, readiness
from fedcybgd.coordinator.services.operate import forecasts, prepare, steer
from fedcybgd.coordinator.services.path import apply_round, claim, lease, submit
from fedcybgd.coordinator.services.path.claim import TurnedDown
from fedcybgd.coordinator.services.path.lease import Leased
from fedcybgd.coordinator.services.records import job_leases
from fedcybgd.coordinator.services.states import jobs as states
from fedcybgd.shared.contract.agents import ClaimRequest, DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.assignments import DeltaSubmission, ReturnRequest
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import BlobRef, FileRef
from fedcybgd.shared.contract.training import TrainMetrics

AGENTS = ("ann", "bob", "cleo")
MODELS = {"small": 3, "large": 4}
"""name → layers"""
HELD_OUT = {digest_of(b"rows"): "rows.csv", digest_of(b"others"): "others.csv"}
METRICS = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1.0, loss_last=1.0, seconds=1.0, tokens_per_s=1.0)
FILES = [FileRef(name="config.json", digest=digest_of(b"config"), size=6)]
HOUR = timedelta(hours=1)
TOOK = re.compile(r'"seconds": [0-9.e-]+')
"""What this machine took: no two stories agree in it."""
IDS = re.compile(r"\b(run|asg|job)_[0-9a-f]{16}\b")


class SaidEnough(Exception):
    """What is still to be told makes no difference."""


def stage(database: Database) -> None:
    """What is there before any run: models, agents, held-out files."""
    now = utcnow()
    with database.transaction() as session:
        for name, layers in MODELS.items():
            config = {"model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
                      "num_hidden_layers": layers, "vocab_size": 100}  # fmt: skip
            values = [_stored(name, b) for b in _shapes(layers)]
            session.add(
                Model(id=_id("mod", name), name=name, source="here", state="ready", config=config, files=FILES, blocks=values, left_out=[],
                      num_parameters=sum(b.num_parameters for b in values), created_at=now)
            )  # fmt: skip
        for name in AGENTS:
            session.add(Agent(id=_id("agt", name), name=name, key_hash=digest_of(name.encode()), state="active", device=DeviceInfo(),
                              limits=DeclaredLimits(memory_bytes=1 << 34), version="", enrolled_at=now))  # fmt: skip
        for digest, name in HELD_OUT.items():
            session.add(HeldOut(digest=digest, name=name, size=4, created_at=now))


def _id(kind: str, name: str) -> str:
    return f"{kind}_{digest_of(name.encode())[:16]}"


def _shapes(layers: int) -> list[BlockShape]:
    layer = {"q.weight": (64, 64), "up.weight": (128, 64), "down.weight": (64, 128), "norm.weight": (64,)}
    return [
        BlockShape("embeddings", "embeddings", {"word_embeddings.weight": (100, 64), "norm": (64,)}),
        *(BlockShape(f"layers.{i}", "layer", {f"{i}.{n}": s for n, s in layer.items()}) for i in range(layers)),
        BlockShape("pooler", "pooler", {"pooler": (64, 64)}),
    ]


def _stored(name: str, block: BlockShape) -> StoredBlock:
    tensors = [TensorShape(name=n, shape=list(s), linear=block.kind == "layer" and len(s) == 2) for n, s in block.tensors.items()]
    digest = digest_of(f"{name} {block.name}".encode())
    return StoredBlock(name=block.name, kind=block.kind, digest=digest, size=4 * block.num_parameters, num_parameters=block.num_parameters,
                       tensors=tensors)  # fmt: skip


class Story:
    """One run from its run file to its end, rolled back afterwards; `told` is what was said where, as JSON.

    `asides`: what is tried and taken back before the first round. `known` of `where`: with the first word there that is another, it has said enough.
    """

    def __init__(self, database: Database, spec: RunFile, asides: bool = True, where: str = "", known: Sequence[Any] = ()) -> None:
        self.spec, self._asides, self._where, self._known = spec, asides, where, known
        self.told: dict[str, list[Any]] = {}
        self._ids: dict[str, str] = {}
        with Session(database.engine) as self.session:
            with suppress(SaidEnough):
                self._tell()
            self.session.rollback()

    def _say(self, where: str, what: Any) -> None:
        text = TOOK.sub('"seconds": …', json.dumps(what, default=str, sort_keys=True))
        text = IDS.sub(lambda m: self._ids.setdefault(m[0], f"{m[1]} {len(self._ids)}"), text)
        said = self.told.setdefault(where, [])
        said.append(text)
        if where == self._where and said != list(self._known[: len(said)]):
            raise SaidEnough

    def _tell(self) -> None:
        session, spec = self.session, self.spec
        self._say("plan", [a.model_dump() for a in forecasts.plan_run(session, spec, rows=50).agents])
        run = prepare.create(session, spec, utcnow())
        self._work()
        for agent in AGENTS:
            self._say("offer", [offer.model_dump() for offer in offers.self_of(session, _id("agt", agent), utcnow()).runs])
        for agent in AGENTS:
            readiness.row_of(session, run.id, _id("agt", agent), utcnow()).fits = True
        session.flush()
        steer.start(session, run.id, utcnow())
        self._say("participants", run.participants)
        if self._asides:
            self._patience(run)
            self._attempts(run)
        while run.state == "running" and (number := run.rounds_done) <= len(run.trained_blocks):
            self._round(run, number)  # into the second cycle
            if run.rounds_done == number:
                break
        self._say("end", [run.state, run.reason, run.rounds_total])
        self._say("conclusion", run.conclusion and run.conclusion.model_dump())

    def _claim(self, agent: str, later: timedelta = timedelta()) -> Any:
        found = claim.claim(self.session, _id("agt", agent), ClaimRequest(runs=["*"]), utcnow() + later)
        if isinstance(found, TurnedDown):
            claim.turned_down(self.session, found, utcnow())
            return self._claim(agent, later)
        return found.assignment if isinstance(found, Leased) else None

    def _patience(self, run: Run) -> None:
        """From when on work that is meant for one agent is given to another."""
        self._have_ready()
        for minutes in (1, 6):
            for agent in reversed(AGENTS):
                with self.session.begin_nested() as point:
                    got = self._claim(agent, timedelta(minutes=minutes))
                    point.rollback()
                self._say("patience", [minutes, agent, got is not None])

    def _attempts(self, run: Run) -> None:
        """How often a visit may fail until the run is paused."""
        with self.session.begin_nested() as point:
            count = 0
            while run.state == "running" and count < 20:
                got = next((g for agent in AGENTS if (g := self._claim(agent, HOUR)) is not None), None)
                if got is None:
                    break
                held = self.session.get_one(Assignment, got.assignment_id)
                assert held.agent_id is not None
                request = ReturnRequest(attempt=got.attempt, reason="other")
                lease.give_back(self.session, got.assignment_id, held.agent_id, request, utcnow())
                count += 1
            point.rollback()
        self._say("attempts", count)
        self.session.expire_all()

    def _have_ready(self) -> None:
        """Shards are made, and emulators measured, when somebody first asks for them."""
        for agent in AGENTS:
            with self.session.begin_nested() as point:
                self._claim(agent, HOUR)
                asked = [{"kind": j.kind, "subject": j.subject, "payload_json": j.payload_json} for j in self._queued()]
                point.rollback()
            for job in asked:
                if job["kind"] in (JobKind.ENCODE, JobKind.FIDELITY):
                    self.session.add(Job(id=_id("job", json.dumps(job)), lane="quick", state=JobState.QUEUED, tries=0,
                                         created_at=utcnow(), **job))  # fmt: skip
                    self._work()

    def _round(self, run: Run, number: int) -> None:
        self._have_ready()
        for agent in AGENTS:
            if self._visit(agent, number) and number == 0:
                self._deadline(run)
        for agent in AGENTS:  # whoever has no part in it may stand in
            if (round := self.session.get(Round, (run.id, number))) is None or round.state != "closed":
                self._visit(agent, number, HOUR)

    def _visit(self, agent: str, number: int, later: timedelta = timedelta()) -> bool:
        if (got := self._claim(agent, later)) is None:
            return False
        self._say("assignment", [agent, got.model_dump()])
        metrics = METRICS.model_copy(update={"rows": 1 + AGENTS.index(agent)})
        submission = DeltaSubmission(
            attempt=got.attempt, digest=digest_of(f"{number} {got.block} {got.train.seed}".encode()), metrics=metrics
        )
        submit.submit(self.session, got.assignment_id, _id("agt", agent), submission, 9, utcnow())
        self._work()
        return True

    def _deadline(self, run: Run) -> None:
        """From when on the others of a wave are waited for no longer."""
        for seconds in (30, 90):
            with self.session.begin_nested() as point:
                apply_round.apply_overdue(self.session, run.id, utcnow() + timedelta(seconds=seconds))
                self._say("deadline", [seconds, [j.payload_json for j in self._queued()]])
                point.rollback()
            self.session.expire_all()

    # ---- the engine, played --------------------------------------------------------------------------------------------

    def _queued(self) -> list[Job]:
        self.session.flush()
        found = self.session.scalars(select(Job).where(Job.state == JobState.QUEUED))
        # Those of one moment by what they are to do: their ids are drawn.
        return sorted(found, key=lambda job: (job.created_at, json.dumps(job.payload_json, sort_keys=True)))

    def _work(self) -> None:
        while jobs := self._queued():
            for job in jobs:
                self._say(job.kind, job.payload_json)
                states.take(job, "story", utcnow())
                self.session.flush()
                self._finish(job)
                self.session.flush()

    def _finish(self, job: Job) -> None:
        outcomes.complete(self.session, job_leases.hold_of(job), getattr(self, f"_{job.kind}")(job), utcnow())

    def _prepare(self, job: Job) -> PrepareResult:
        payload = PreparePayload.model_validate(job.payload)
        shapes = [BlockShape(b.name, b.kind, {t.name: tuple(t.shape) for t in b.tensors}) for b in payload.blocks]
        blocks, visited = blocks_of_run(self.spec, payload.config, shapes)
        return PrepareResult(files=payload.files, blocks=[_stored(f"{self.spec.model} {payload.seed}", b) for b in blocks], trained=visited,
                             held_out_rows=9 if payload.held_out else None)  # fmt: skip

    def _influence(self, job: Job) -> InfluenceResult:
        return InfluenceResult(influence={f"layers.{i}": 0.1 * (i + 1) for i in range(5)}, rows=1, tokens=1, seconds=1.0)

    def _importance(self, job: Job) -> ImportanceResult:
        return ImportanceResult(importance={"layers.1": 2.0, "layers.0": 1.0}, rows=1, seconds=1.0)

    def _encode(self, job: Job) -> EncodeResult:
        return EncodeResult(shards=[_made(ref.digest, ref.codec) for ref in EncodePayload.model_validate(job.payload).wanted])

    def _fidelity(self, job: Job) -> FidelityResult:
        payload = FidelityPayload.model_validate(job.payload)
        cosine = 0.5 if "int4" in payload.plan else 0.99
        return FidelityResult(plan=payload.plan, block=payload.block, cosine=cosine, cosine_worst=cosine, loss_real=1.0, loss_emulator=1.0,
                              rows=1, seconds=1.0)  # fmt: skip

    def _loss(self, job: Job) -> EvaluateResult:
        return EvaluateResult(rows=1, loss=1.0, accuracy=None, seconds=1.0)

    def _evaluate(self, job: Job) -> EvaluateResult:
        """No round makes it better than the first."""
        return EvaluateResult(
            rows=1, loss=1.0, accuracy=0.5 if EvaluatePayload.model_validate(job.payload).after_rounds == 1 else 0.4, seconds=1.0
        )

    def _conclude(self, job: Job) -> ConcludeResult:
        payload = ConcludePayload.model_validate(job.payload)
        made = {
            name: [
                ref.model_copy(update={"digest": digest_of(f"{name} {ref.digest}".encode())}) for ref in (b.last for b in candidate.blocks)
            ]
            for name, candidate in (("average", payload.average), ("best", payload.best))
        }
        return ConcludeResult(**made, score=EvaluateResult(rows=1, loss=1.0, accuracy=0.35, seconds=1.0))

    def _admit(self, job: Job) -> AdmitResult:
        payload = AdmitPayload.model_validate(job.payload)
        numbers = {ref.block: BlockNumbers([], norm=5.0, base_norm=1.0) for ref in payload.blocks}
        # From its fourth version on a block that is trained along moves three times as far.
        deltas = {
            ref.block: BlockDelta(norm=0.3 if ref.version > 3 else 0.1, base_norm=100.0, size=1_000_000, sketch="")
            for ref in payload.blocks
        }
        return AdmitResult(rejected_because=judge_numbers(numbers, frozenset(payload.always), payload.rules), deltas=deltas)

    def _gate(self, job: Job) -> GateResult:
        return GateResult(losses=[1.0], after=1.0)

    def _apply(self, job: Job) -> ApplyResult:
        payload = ApplyPayload.model_validate(job.payload)
        blocks, shards, patches = [], [], []
        for change in payload.changes:
            digest = digest_of(f"{change.block.digest} {payload.round}".encode())
            term = change.terms[0]
            patches.append(PatchMade(kind="delta", target=digest, base=change.block.digest, digest=term.digest, size=9, weight=term.weight))
            blocks.append(change.block.model_copy(update={"version": change.block.version + 1, "digest": digest}))
            shards += [_made(digest, codec) for codec in sorted({"exact", *change.codecs})]
        return ApplyResult(blocks=blocks, shards=shards, patches=patches)


def _made(source: str, codec: str) -> EncodedRef:
    digest = source if codec == "exact" else digest_of(f"{source} {codec}".encode())
    return EncodedRef(source=source, codec=codec, digest=digest, size=100, packed=BlobRef(digest=digest_of(digest.encode()), size=90))
