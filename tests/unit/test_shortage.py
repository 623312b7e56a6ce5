"""An agent on a full disk, without open files or memory: it pauses, says why, and goes on by itself."""

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd.agent import shortage, worker
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.errors import VisitFailed
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.shortage import LONGEST_S, Shortage, is_short, write_status
from fedcybgd.agent.training.delta import TrainedBlock, write_delta
from fedcybgd.agent.training.failures import reason_of
from fedcybgd.agent.training.prefix import RowStore
from fedcybgd.shared.contract.digests import digest_of
from tests.support.hostile import serving
from tests.support.volumes import fill, small_volume
from tests.unit.test_cache import Coordinator
from tests.unit.test_consent import assignment, at_work, offering
from tests.unit.test_outbox import METRICS
from tests.unit.test_outbox import assignment as work

FULL = OSError(errno.ENOSPC, "No space left on device", "/home/a/cache/x.part")


def test_it_waits_longer_each_time_and_not_when_space_was_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(Shortage, "_free", lambda _: free[0])
    short, waited = Shortage(tmp_path), list[float]()
    sums = []
    for _ in range(12):
        waited.clear()
        short.wait(waited.append)
        sums.append(sum(waited))
    assert all(later > 1.2 * before for before, later in itertools.pairwise(sums[:8]))
    assert LONGEST_S * 0.8 <= sums[-1] <= LONGEST_S * 1.2 + shortage.LOOK_EVERY_S

    def freed(seconds: float) -> None:
        waited.append(seconds)
        free[0] += shortage.ROOM // 2

    waited.clear()
    short.wait(freed)
    assert len(waited) == 2
    short.over()
    waited.clear()
    short.wait(waited.append)
    assert sum(waited) < 10


def test_an_error_without_words_is_named() -> None:
    assert "(MemoryError)" in shortage.what_is_short(MemoryError())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "disk_full"),
        (VisitFailed("disk_full", "the disk is full", "SafetensorError, phase training"), "disk_full"),
        (OSError(errno.EMFILE, "Too many open files"), "other"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "other"),
        (MemoryError(), "other"),
    ],
)
def test_a_visit_that_finds_no_room_is_given_back_and_the_agent_pauses(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise error

    paused: list[str] = []
    monkeypatch.setattr(worker, "run_assignment", fails)
    with serving(offering(assignment("good-run"))) as server:
        agent = at_work(tmp_path / "home", server, monkeypatch, ["good-run"])
        monkeypatch.setattr(Shortage, "wait", lambda *_: paused.append(json.loads((tmp_path / "home/status.json").read_text())["state"]))
        agent._one()
        [returned] = [json.loads(asked.body) for asked in server.asked if asked.path.endswith("/return")]
    assert returned["reason"] == reason
    assert "/home/a" not in returned["message"]
    assert paused == ["paused"]
    assert "disk" in json.loads((tmp_path / "home/status.json").read_text())["error"] or reason == "other"
    assert [record for record in caplog.records if record.exc_info] == []
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_the_daemon_outlives_what_it_cannot_write_or_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(offering(assignment("good-run"))) as server:
        agent = at_work(tmp_path / "home", server, monkeypatch, ["good-run"])
        failures = [FULL, OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError()]

        def one() -> None:
            if failures:
                raise failures.pop()
            agent._stop.asked = True  # type: ignore[misc]

        waited: list[int] = []
        monkeypatch.setattr(agent, "_one", one)
        monkeypatch.setattr(agent._stop, "listen", lambda: None)
        monkeypatch.setattr(Shortage, "wait", lambda *_: waited.append(1))
        agent._trainer = Closing()  # type: ignore[assignment]
        agent.run()
    assert len(waited) == 3


class Closing:
    walls = None

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


# ---- a real disk that is full -----------------------------------------------------------------------------------------


def test_the_status_is_said_on_a_full_disk(tmp_path: Path) -> None:
    with small_volume(tmp_path, 1 << 20) as volume:
        path = volume / "status.json"
        write_status(path, {"state": "training", "more": "x" * 2000})
        fill(volume)
        write_status(path, {"state": "paused", "error": "the disk is full"})
        assert json.loads(path.read_text()) == {"state": "paused", "error": "the disk is full"}
        assert not path.with_suffix(".part").exists()


def test_every_place_that_writes_says_that_the_disk_is_full_and_works_once_there_is_room(tmp_path: Path) -> None:
    weights = {"w": torch.randn(200, 300)}
    shard = tmp_path / "shard.safetensors"
    write_shard(shard, weights)
    with small_volume(tmp_path, 4 << 20) as volume:
        cache, outbox, coordinator = ShardCache(volume / "cache", 1 << 30), Outbox(volume / "outbox"), Coordinator(b"x" * 300_000)
        delta = volume / "outbox" / "delta.safetensors"

        def fetch() -> None:
            cache.get(digest_of(coordinator.data), len(coordinator.data), coordinator.fetch)

        def train() -> None:
            trained = {"layers.0": TrainedBlock({"w": weights["w"] + torch.randn(200, 300)}, shard)}
            write_delta(trained, delta, "float32", volume / "outbox" / "delta.left")

        def put() -> None:
            outbox.put(work(), "a" * 64, METRICS)

        def spill() -> None:
            store = RowStore({0: 4000}, on_disk=True)
            store._file = (volume / "prefix").open("w+b")
            store.put(0, torch.ones(4000, 64))
            assert bool((store.batch([0], torch.ones(1, 4000)) == 1).all())

        for write in (fetch, train, put, spill):
            ballast = fill(volume)
            with pytest.raises(Exception) as caught:
                write()
            failed = caught.value
            assert (failed.reason if isinstance(failed, VisitFailed) else reason_of(failed)) == "disk_full", write.__name__
            assert is_short(failed) or isinstance(failed, VisitFailed)
            ballast.unlink()
            write()


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def test_a_short_write_of_a_nearly_full_disk_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:1000], at))
    store = RowStore({0: 50}, on_disk=True)
    rows = torch.randn(50, 64)
    store.put(0, rows)
    assert torch.equal(store.batch([0], torch.ones(1, 50))[0], rows)
    store.close()
