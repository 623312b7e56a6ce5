"""Agents that fetch, patch and send as real ones do, but instead of training only move their blocks a little: no process, no steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import select

from fedcybgd.agent.assignment_run import Tools, run_assignment
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import VisitFailed
from fedcybgd.agent.messages import DataSource, TrainRequest
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.residuals import Residuals
from fedcybgd.agent.training.shards import ShardCorrupt, materialise
from fedcybgd.coordinator.db.models import Agent, Run, Traffic
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.assignments import LeasedAssignment, Progress, ReturnRequest
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.tensors.codecs import CodecError, read_encoded
from tests.support.decoded import decode
from tests.support.deltas import write_delta
from tests.support.live import LiveCoordinator
from tests.support.visits import METRICS, fresh


class LightTrainer:
    """Makes the shards, reads them as what they say they are, and leaves a delta of small random values."""

    walls = "none: it is no process"

    def __init__(self, scale: float = 1e-4) -> None:
        self.scale = scale
        self.requests: list[TrainRequest] = []

    def start(self) -> None:
        pass

    def train(self, request: TrainRequest, report: Callable[[Progress], None], lost: object) -> TrainMetrics:
        self.requests.append(request)
        try:
            for shard in request.shards:
                materialise(shard)
                read_encoded(Path(shard.path), shard.codec)
        except (ShardCorrupt, PackedError, CodecError, HeaderError) as error:
            raise VisitFailed("shard_corrupt", str(error)) from error
        paths = {s.block: Path(s.path) for s in request.shards}
        codecs = {s.block: s.codec for s in request.shards}
        opened = list(request.train.trained)
        draw = torch.Generator().manual_seed(request.train.seed)
        trained = {
            block: {
                n: t.float() + self.scale * torch.randn(t.shape, generator=draw)
                for n, t in sorted(decode(paths[block], codecs[block]).items()) if t.is_floating_point()
            }
            for block in opened
        }  # fmt: skip
        carried = {block: Path(path) for block, path in request.residuals.items()}
        leave = Path(request.new_residuals) if request.new_residuals else None
        error = write_delta(trained, {b: paths[b] for b in opened}, Path(request.delta_path), request.delta_codec, carried, leave)
        return METRICS.model_copy(update={"delta_error": error})

    def stop(self, visit: str | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class LightAgent:
    def __init__(self, live: LiveCoordinator, home: Path, name: str | None = None, url: str = "") -> None:
        self.name = name or fresh("light")
        self.client: Client = live.enrol(self.name, url)
        self.home = home
        self.start()
        self.fetched: list[str] = []
        """digests in the order in which they were asked for, in the last visit"""
        ask = self.client.shard

        def shard(assignment_id: str, digest: str, offset: int) -> Any:
            self.fetched.append(digest)
            return ask(assignment_id, digest, offset)

        self.client.shard = shard  # type: ignore[method-assign]

    def start(self, pause: Callable[[float], None] = time.sleep) -> None:
        """As a new process on its home does: it knows what lies there, and nothing else."""
        self.trainer = LightTrainer()
        residuals = Residuals(self.home / "residuals")
        self.cache = ShardCache(self.home / "cache", 1 << 30)
        outbox, data = Outbox(self.home / "outbox"), DataSource(path="none.jsonl")
        self.tools = Tools(self.client, self.cache, outbox, self.trainer, data, residuals, pause=pause)  # type: ignore[arg-type]

    def claim(self, run: str, wait: float = 0.3) -> LeasedAssignment | None:
        return self.client.claim(ClaimRequest(runs=[run]), wait)

    def visit(self, assignment: LeasedAssignment) -> None:
        self.fetched.clear()
        run_assignment(self.tools, assignment, lambda _: None)

    def give_back(self, assignment: LeasedAssignment, reason: Any) -> None:
        self.client.give_back(assignment.assignment_id, ReturnRequest(attempt=assignment.attempt, reason=reason))


def traffic(live: LiveCoordinator, run: str) -> dict[tuple[str, int, str], int]:
    """(name of the agent, round, kind) → bytes, as the coordinator counted them."""
    with live.database.reading() as session:
        rows = session.execute(
            select(Agent.name, Traffic.round, Traffic.kind, Traffic.bytes)
            .join(Agent, Agent.id == Traffic.agent_id)
            .join(Run, Run.id == Traffic.run_id)
            .where(Run.name == run)
        )
        return {(name, round, kind): amount for name, round, kind, amount in rows}
