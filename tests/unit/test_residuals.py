"""Error feedback on the agent: what a delta left out is kept with it, and carried on when the coordinator names that delta."""

from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import assignment_run
from fedcybgd.agent.assignment_run import Fetched, Tools
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.errors import CoordinatorSaid, VisitFailed
from fedcybgd.agent.messages import DataSource, TrainRequest
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.residuals import KEPT, Residuals
from fedcybgd.shared.contract.assignments import AddedDelta, DeltaReceipt, DeltaSubmission, LeasedAssignment, Progress, UploadOffset
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import Manifest, ShardRef
from fedcybgd.shared.contract.training import ParameterGroup, TrainMetrics, TrainSettings

METRICS = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1)


def asg(number: int) -> str:
    return f"asg_{number:016x}"


def delta(assignment_id: str) -> bytes:
    return b"delta of " + assignment_id.encode()


def assignment(number: int = 0, block: str = "layers.0", run: int = 1, feedback: bool = True, **added: int) -> LeasedAssignment:
    """`added`: block (with _ for .) → number of the visit whose delta was added to it last."""
    carried = [AddedDelta(block=b.replace("_", "."), assignment_id=asg(n), digest=digest_of(delta(asg(n)))) for b, n in added.items()]
    groups = [ParameterGroup(blocks=[block], learning_rate=1e-3), ParameterGroup(blocks=["head"], learning_rate=1e-3)]
    refs = [ShardRef(block=b, version=number, codec="exact", digest=digest_of(f"{b}{number}".encode()), size=4) for b in (block, "head")]
    return LeasedAssignment(
        assignment_id=asg(number), attempt=1, lease_seconds=60, run_id=f"run_{run:016x}", run_name="run", round=number, cycle=0, block=block,
        manifest=Manifest(files=[], blocks=refs), delta_codec="int8", error_feedback=feedback, max_delta_bytes=1 << 20, carried=carried,
        train=TrainSettings(task="text-classification", groups=groups, batch_size=1, max_length=8, seed=0),
    )  # fmt: skip


class Trainer:
    """Leaves a delta and, where it is asked to, what the delta left out."""

    def __init__(self) -> None:
        self.requests: list[TrainRequest] = []

    def train(self, request: TrainRequest, report: Any, lost: Any) -> TrainMetrics:
        self.requests.append(request)
        Path(request.delta_path).write_bytes(delta(request.assignment_id))
        if request.new_residuals is not None:
            Path(request.new_residuals).mkdir(parents=True, exist_ok=True)
            for block in (b for group in request.train.groups for b in group.blocks):
                (Path(request.new_residuals) / f"{block}.safetensors").write_text(f"left of {request.assignment_id}")
        return METRICS

    def stop(self, visit: str | None = None) -> None:
        pass


class Coordinator:
    """Takes deltas, unless it is told to refuse or to die."""

    bytes_sent = further = 0
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
            fetched = Fetched({}, [], self.residuals.of(work.run_id, work.carried), set())
            metrics = assignment_run.train(self.tools, work, fetched, Beat(), ignore)  # type: ignore[arg-type]
            entry = assignment_run.keep(self.tools, work, metrics)
        assignment_run.send(self.tools, work, *entry)
        return self.trainer.requests[-1] if len(self.trainer.requests) > before else None

    def carries(self, **added: int) -> dict[str, str]:
        """block → what would be carried to it."""
        work = assignment(99, **added)
        return {block: Path(path).read_text() for block, path in self.residuals.of(work.run_id, work.carried).items()}

    def files(self) -> list[Path]:
        return sorted(path for path in self.home.rglob("*") if path.is_file())

    @property
    def home(self) -> Path:
        return self.residuals._root


class Beat:
    lost = None


def ignore(progress: Progress) -> None:
    pass


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def carried(request: TrainRequest | None) -> dict[str, str]:
    assert request is not None
    return {block: Path(path).read_text() for block, path in request.residuals.items()}


def test_what_counts_is_what_the_delta_left_out_that_the_coordinator_names(agent: Agent) -> None:
    assert carried(agent.visit(assignment(0))) == {}
    first = f"left of {asg(0)}"
    assert carried(agent.visit(assignment(1, head=0, layers_0=0))) == {"layers.0": first, "head": first}
    assert carried(agent.visit(assignment(2, head=0, layers_0=0))) == {"layers.0": first, "head": first}, "the second one was not added"
    assert carried(agent.visit(assignment(3, head=2, layers_0=1))) == {"layers.0": f"left of {asg(1)}", "head": f"left of {asg(2)}"}
    assert carried(agent.visit(assignment(4, run=2, head=3))) == {}, "another run's blocks are others"
    assert carried(agent.visit(assignment(5, head=77))) == {}, "a delta that this home knows nothing of"


def test_without_error_feedback_nothing_is_kept(agent: Agent) -> None:
    request = agent.visit(assignment(1, feedback=False))
    assert request is not None
    assert request.new_residuals is None
    assert agent.files() == []


def test_it_is_kept_before_anything_is_sent(agent: Agent, tmp_path: Path) -> None:
    agent.coordinator.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        agent.visit(assignment(1))
    again = Agent(tmp_path)
    assert again.carries(head=1, layers_0=1) == {"layers.0": f"left of {asg(1)}", "head": f"left of {asg(1)}"}, "perhaps it was heard"
    assert again.visit(assignment(1)) is None, "the delta from before the crash is sent"
    assert again.coordinator.taken == [asg(1)]


def test_what_a_refused_delta_left_out_leaves_the_one_before_as_it_is(agent: Agent) -> None:
    agent.visit(assignment(0))
    agent.coordinator.error = CoordinatorSaid(422, "delta_refused", "no")
    with pytest.raises(VisitFailed):
        agent.visit(assignment(1, head=0))
    agent.coordinator.error = None
    assert carried(agent.visit(assignment(2, head=0))) == {"head": f"left of {asg(0)}"}


def test_other_residuals_make_other_work(agent: Agent) -> None:
    agent.coordinator.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        agent.visit(assignment(1))
    assert agent.outbox.find(assignment(1, head=0)) is None


@pytest.mark.parametrize("bad", [b"", b"left", b"left of somebody else's"])
def test_a_damaged_one_is_thrown_away_and_not_carried(agent: Agent, bad: bytes) -> None:
    agent.visit(assignment(0))
    [spoilt] = [path for path in agent.files() if path.parent.name == "head"]
    spoilt.write_bytes(bad)
    assert set(agent.carries(head=0, layers_0=0)) == {"layers.0"}
    assert not spoilt.exists()


def test_a_block_has_few_and_the_one_that_counts_among_them(agent: Agent) -> None:
    agent.visit(assignment(0))
    for number in range(1, 9):
        agent.visit(assignment(number, head=0))
    assert len([path for path in agent.files() if path.parent.name == "head"]) <= KEPT + 1
    assert agent.carries(head=0) == {"head": f"left of {asg(0)}"}
    assert agent.carries(head=8) == {"head": f"left of {asg(8)}"}


def test_they_share_the_limit_of_the_cache_and_make_room_for_the_visit_at_hand(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.visit(assignment(0))
    agent.visit(assignment(1, "layers.1"))
    took = sum(path.stat().st_size for path in agent.files())
    assert took > 0
    agent.carries(head=0)
    cache = ShardCache(tmp_path / "other", 1000 + took)
    cache.share(agent.residuals.shrink)
    cache.pin([("a", 1000)])
    assert sum(path.stat().st_size for path in agent.files()) == took, "there is room for all"
    cache.pin([("a", 1001)])
    assert 0 < sum(path.stat().st_size for path in agent.files()) < took
    cache.pin([("a", 1000 + took - len(f"left of {asg(0)}"))])
    assert [path.parent.name for path in agent.files()] == ["head"], "what the visit carries stays"
    with pytest.raises(VisitFailed, match="disk_gb"):
        cache.pin([("a", 1000 + took)])
    assert agent.carries(head=0) == {"head": f"left of {asg(0)}"}


def test_the_delta_that_was_taken_stays_in_the_cache(agent: Agent) -> None:
    agent.visit(assignment(0))
    assert agent.tools.cache.path(digest_of(delta(asg(0)))).read_bytes() == delta(asg(0))
    assert not list((agent.outbox.delta_path(assignment())).parent.iterdir()), "the outbox is empty"
