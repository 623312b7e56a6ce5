"""The real API and the real engine on a store without a directory: no route and no service wants a file of it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.parts import Parts
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.wakes.local import LocalWakes
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.words import ELSEWHERE
from tests.support.engines import EngineThread
from tests.support.live import LiveCoordinator
from tests.support.memory_store import Memory, MemoryStore, MemoryUploads
from tests.support.processes import wait_for
from tests.support.visits import Hand, operator, refused, settled, start_run, versions


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def live(tmp_path: Path, memory: Memory, bert: Path) -> Iterator[LiveCoordinator]:
    def parts(_settings: Settings, _database: Database) -> Parts:
        store = MemoryStore(memory)
        return Parts(store, MemoryUploads(memory), partial(EngineThread, store), LocalWakes())

    live = LiveCoordinator(tmp_path / "home", parts=parts)
    live.add_model("bert", bert)
    yield live
    live.stop()


def test_a_round_and_an_export_without_a_directory(live: LiveCoordinator, memory: Memory) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    place = f"/assignments/{assignment.assignment_id}/shards/"
    for ref in assignment.manifest.blocks:
        whole = hand.http.get(place + ref.digest)
        assert (whole.status_code, digest_of(whole.content)) == (200, ref.digest)
        part = hand.http.get(place + ref.digest, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
    hand.deliver(assignment)
    assert settled(live, run)["rounds_done"] == 1
    assert versions(live, run)["layers.0"] == 1
    export = live.operator.post(f"/runs/{run}/exports")["export_id"]
    wait_for(lambda: live.operator.get(f"/runs/{run}/exports/{export}")["ready"])
    for file in live.operator.get(f"/runs/{run}/exports/{export}")["files"]:
        assert digest_of(operator(live).get(f"/runs/{run}/exports/{export}/{file['name']}").content) == file["digest"]
    assert memory.uploads == {}
    assert not [path for path in live.settings.home.rglob("*") if path.is_dir()], "blobs and uploads are elsewhere"


def test_whoever_can_fetch_it_elsewhere_is_sent_there(live: LiveCoordinator, memory: Memory) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    memory.links = "https://elsewhere.example/"
    place, asks = f"/assignments/{assignment.assignment_id}/shards/{ref.digest}", {ELSEWHERE: "yes"}
    sent = hand.http.get(place, headers=asks)
    assert (sent.status_code, sent.headers["location"]) == (307, f"https://elsewhere.example/{ref.digest}")
    wait_for(lambda: bytes_down(live, run) == ref.size)
    hand.http.get(place, headers=asks | {"Range": "bytes=10-"})
    wait_for(lambda: bytes_down(live, run) == 2 * ref.size - 10)  # what is fetched elsewhere counts as it was asked for
    assert hand.http.get(place, headers=asks | {"Range": f"bytes={ref.size}-"}).status_code == 416
    here = hand.http.get(place)
    assert (here.status_code, digest_of(here.content)) == (200, ref.digest), "an agent that does not ask for it is not sent away"


def test_nobody_is_sent_for_what_is_lost(live: LiveCoordinator, memory: Memory) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    memory.links = "https://elsewhere.example/"
    del memory.blobs[ref.digest]
    answer = hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{ref.digest}", headers={ELSEWHERE: "yes"})
    refused(answer, 503, "blob_awaited")


def bytes_down(live: LiveCoordinator, run: str) -> int:
    amount: int = live.operator.get(f"/runs/{run}")["bytes"]["down"]
    return amount
