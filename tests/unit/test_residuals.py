"""Error feedback on the agent: what is left out counts from the receipt on, for the same block of the same run."""

from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import assignment_run
from fedcybgd.agent.assignment_run import Fetched, Tools
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.errors import CoordinatorSaid, VisitFailed
from fedcybgd.agent.messages import DataSource, TrainRequest
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.residuals import Residuals
from fedcybgd.shared.contract.assignments import DeltaReceipt, DeltaSubmission, LeasedAssignment, Progress, UploadOffset
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import Manifest, ShardRef
from fedcybgd.shared.contract.training import ParameterGroup, TrainMetrics, TrainSettings

METRICS = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1)


def asg(number: int) -> str:
    return f"asg_{number:016x}"


def assignment(number: int = 0, block: str = "layers.0", run: int = 1, feedback: bool = True) -> LeasedAssignment:
    groups = [ParameterGroup(blocks=[block], learning_rate=1e-3), ParameterGroup(blocks=["head"], learning_rate=1e-3)]
    refs = [ShardRef(block=b, version=number, codec="exact", digest=digest_of(f"{b}{number}".encode()), size=4) for b in (block, "head")]
    return LeasedAssignment(
        assignment_id=asg(number), attempt=1, lease_seconds=60, run_id=f"run_{run:016x}", run_name="run", round=number, cycle=0, block=block,
        manifest=Manifest(files=[], blocks=refs), delta_codec="int8", error_feedback=feedback, max_delta_bytes=1 << 20,
        train=TrainSettings(task="text-classification", groups=groups, batch_size=1, max_length=8, seed=0),
    )  # fmt: skip


class Trainer:
    """Leaves a delta and, where it is asked to, what the delta left out."""

    def __init__(self) -> None:
        self.requests: list[TrainRequest] = []

    def train(self, request: TrainRequest, report: Any, lost: Any) -> TrainMetrics:
        self.requests.append(request)
        Path(request.delta_path).write_bytes(b"delta of " + request.assignment_id.encode())
        if request.new_residuals is not None:
            Path(request.new_residuals).mkdir(parents=True, exist_ok=True)
            for block in (b for group in request.train.groups for b in group.blocks):
                (Path(request.new_residuals) / f"{block}.safetensors").write_text(f"left of {request.assignment_id}")
        return METRICS

    def stop(self, visit: str | None = None) -> None:
        pass


class Coordinator:
    """Takes deltas, unless it is told to refuse or to die."""

    bytes_sent = 0
    piece: int | None = None

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.taken: list[str] = []

    def upload_offset(self, assignment_id: str, digest: str) -> UploadOffset:
        return UploadOffset(offset=0, complete=False)

    def upload(self, assignment_id: str, digest: str, path: Path, offset: int, size: int) -> UploadOffset:
        self.bytes_sent += size
        return UploadOffset(offset=offset + size, complete=False)

    def submit(self, assignment_id: str, submission: DeltaSubmission) -> DeltaReceipt:
        if self.error is not None:
            raise self.error
        self.taken.append(assignment_id)
        return DeltaReceipt(assignment_id=assignment_id, attempt=1, digest=submission.digest)


class Agent:
    def __init__(self, home: Path) -> None:
        self.trainer, self.coordinator = Trainer(), Coordinator()
        self.residuals = Residuals(home / "residuals")
        self.outbox = Outbox(home / "outbox")
        cache = ShardCache(home / "cache", 1 << 20)
        self.tools = Tools(
            self.coordinator, cache, self.outbox, self.trainer, DataSource(path="rows.jsonl"), self.residuals  # type: ignore[arg-type]
        )  # fmt: skip

    def visit(self, work: LeasedAssignment) -> TrainRequest | None:
        """What the training process was asked to do; None where an earlier delta is sent."""
        before = len(self.trainer.requests)
        entry = self.outbox.find(work)
        if entry is None:
            metrics = assignment_run.train(self.tools, work, Fetched({}, [], set()), Beat(), ignore)  # type: ignore[arg-type]
            entry = self.outbox.put(work, metrics)
        assignment_run.send(self.tools, work, *entry)
        return self.trainer.requests[-1] if len(self.trainer.requests) > before else None

    def kept(self, work: LeasedAssignment) -> dict[str, str]:
        """block → what is carried."""
        return {b: Path(p).read_text() for b, p in self.residuals.of(work.run_id, ["layers.0", "layers.1", "head"]).items()}


class Beat:
    lost = None


def ignore(progress: Progress) -> None:
    pass


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def carried(request: TrainRequest | None) -> set[str]:
    assert request is not None
    return set(request.residuals)


def test_it_is_carried_to_the_next_visit_of_the_same_block(agent: Agent) -> None:
    assert carried(agent.visit(assignment(0))) == set()
    assert agent.kept(assignment()) == {"layers.0": f"left of {asg(0)}", "head": f"left of {asg(0)}"}
    assert carried(agent.visit(assignment(1, "layers.1"))) == {"head"}, "layers.1 was not trained here yet"
    assert carried(agent.visit(assignment(2))) == {"layers.0", "head"}
    assert agent.kept(assignment()) == {"layers.0": f"left of {asg(2)}", "layers.1": f"left of {asg(1)}", "head": f"left of {asg(2)}"}
    assert carried(agent.visit(assignment(0, run=2))) == set(), "another run's blocks are others"


def test_without_error_feedback_nothing_is_kept_or_carried(agent: Agent) -> None:
    agent.visit(assignment(0))
    request = agent.visit(assignment(1, feedback=False))
    assert carried(request) == set()
    assert request is not None
    assert request.new_residuals is None
    assert agent.kept(assignment()) == {"layers.0": f"left of {asg(0)}", "head": f"left of {asg(0)}"}


def test_killed_before_the_receipt_it_is_as_before(agent: Agent, tmp_path: Path) -> None:
    agent.visit(assignment(0))
    before = agent.kept(assignment())
    agent.coordinator.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        agent.visit(assignment(1))
    assert agent.kept(assignment()) == before
    again = Agent(tmp_path)
    assert again.kept(assignment()) == before
    assert again.visit(assignment(1)) is None, "the delta from before the crash is sent"
    assert again.coordinator.taken == [asg(1)]
    assert again.kept(assignment()) == {"layers.0": f"left of {asg(1)}", "head": f"left of {asg(1)}"}


def test_what_a_refused_or_superseded_delta_left_out_is_forgotten(agent: Agent) -> None:
    agent.visit(assignment(0))
    before = agent.kept(assignment())
    agent.coordinator.error = CoordinatorSaid(422, "delta_refused", "no")
    with pytest.raises(VisitFailed):
        agent.visit(assignment(1))
    assert agent.kept(assignment()) == before
    agent.coordinator.error = None
    assert carried(agent.visit(assignment(2, "layers.1"))) == {"head"}
    assert agent.kept(assignment())["layers.0"] == f"left of {asg(0)}", "not that of the delta that nobody took"


def test_the_delta_that_was_taken_stays_in_the_cache(agent: Agent) -> None:
    agent.visit(assignment(0))
    assert agent.tools.cache.path(digest_of(b"delta of " + asg(0).encode())).read_bytes() == b"delta of " + asg(0).encode()
    assert not list((agent.outbox.delta_path(assignment())).parent.iterdir()), "the outbox is empty"
