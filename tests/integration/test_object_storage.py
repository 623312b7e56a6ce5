"""The real API and the real engine on object storage, by one setting."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import obstore
import pytest
from obstore.exceptions import GenericError
from typer.testing import CliRunner

from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.elsewhere import OtherHostFailed
from fedcybgd.coordinator.backup import backup
from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.common import StoreDiffers
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import Place, StorageUnusable, open_place
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.words import COORDINATOR
from tests.support import buckets
from tests.support.hostile import Answer, Asked, serving
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, operator, refused, settled, start_run, wire


@pytest.fixture(params=["directory", "s3"] if buckets.S3 else ["directory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return buckets.url(request.param, tmp_path, monkeypatch)


@pytest.fixture
def live(tmp_path: Path, storage: str, bert: Path) -> Iterator[LiveCoordinator]:
    live = LiveCoordinator(tmp_path / "home", storage=storage)
    live.add_model("bert", bert)
    yield live
    live.stop()


def test_a_round_an_export_and_what_is_done_with_a_home(live: LiveCoordinator, tmp_path: Path) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    for ref in assignment.manifest.blocks:
        whole = hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{ref.digest}")
        assert (whole.status_code, digest_of(whole.content)) == (200, ref.digest)
    hand.deliver(assignment)
    assert settled(live, run)["rounds_done"] == 1
    export = live.operator.post(f"/runs/{run}/exports")["export_id"]
    wait_for(lambda: live.operator.get(f"/runs/{run}/exports/{export}")["ready"])
    for file in live.operator.get(f"/runs/{run}/exports/{export}")["files"]:
        assert digest_of(operator(live).get(f"/runs/{run}/exports/{export}/{file['name']}").content) == file["digest"]
    assert not live.settings.blobs.exists()

    kept = {digest for digest, _ in live.store.stored()}
    tidy(live.settings, live.database, live.store, utcnow())
    assert {digest for digest, _ in live.store.stored()} == kept, "what became garbage a moment ago stays"

    assert verify(live.settings, live.operator.get(f"/runs/{run}")["name"]).made_again == 2
    done = backup(live.settings, tmp_path / "backup")
    assert done.blobs == len(kept)
    restored = Settings(home=tmp_path / "backup")
    assert verify(restored, live.operator.get(f"/runs/{run}")["name"]).made_again == 2, "a backup is a home with a directory"


def test_agents_fetch_from_the_storage_itself_where_it_has_links(live: LiveCoordinator, storage: str, tmp_path: Path) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    endpoint = os.environ["AWS_ENDPOINT_URL"] if storage.startswith("s3") else "https://none.example"
    client = Client(live.url, hand.key, storage=[endpoint])
    client.me()
    cache, came = ShardCache(tmp_path / "cache", 1 << 30), list[str]()
    for ref in assignment.manifest.blocks:

        @contextmanager
        def fetch(offset: int, digest: str = ref.digest) -> Iterator[httpx.Response]:
            with client.shard(assignment.assignment_id, digest, offset) as answer:
                came.append(f"{answer.url.scheme}://{answer.url.netloc.decode()}")
                yield answer

        cache.get(ref.digest, ref.size, fetch)
    assert set(came) == {endpoint if storage.startswith("s3") else live.url}
    wait_for(lambda: live.operator.get(f"/runs/{run}")["bytes"]["down"] == sum(ref.size for ref in assignment.manifest.blocks))


@pytest.mark.skipif(not buckets.S3, reason="only a real one knows the time")
def test_an_address_of_s3_that_has_expired_is_asked_for_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_place(Place(tmp_path / "disk", buckets.url("s3", tmp_path, monkeypatch), cache_bytes=1 << 30))
    with store.writer() as writer:
        writer.write(b"bytes")
    links = iter([store.link(writer.digest, 0.001), store.link(writer.digest, 60)])
    time.sleep(1.1)  # S3 counts whole seconds

    def coordinator(asked: Asked) -> Answer:
        sent_to = {"Location": next(links) or ""} if "fedcybgd-elsewhere" in asked.headers else {}
        return Answer(307 if sent_to else 200, b"" if sent_to else b"bytes", {COORDINATOR: "crd_" + 16 * "0"} | sent_to)

    with serving(coordinator) as server:
        client, cache = Client(server.url, "key", storage=[os.environ["AWS_ENDPOINT_URL"]]), ShardCache(tmp_path / "cache", 1 << 30)
        for _ in range(2):
            with suppress(OtherHostFailed):
                got = cache.get(writer.digest, 5, lambda offset: client.shard("asg_" + 16 * "0", writer.digest, offset))
        assert got.read_bytes() == b"bytes"


def test_a_bucket_of_another_database_is_not_shared_with_it(live: LiveCoordinator, tmp_path: Path) -> None:
    prepare_home(live.settings)
    with pytest.raises(StoreDiffers, match="FEDCOORD_STORAGE"):
        prepare_home(Settings(home=tmp_path / "other", storage=live.settings.storage))


def test_a_bucket_whose_label_is_nobodys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "store.id").write_text("?")
    with pytest.raises(StorageUnusable, match=r"store\.id"):
        prepare_home(Settings(home=tmp_path / "home", storage=f"file://{tmp_path / 'bucket'}"))


def test_a_wrong_address_is_one_line_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCOORD_STORAGE", "bucket")
    said = CliRunner().invoke(app, ["serve", "--home", str(tmp_path), "--port", "0"])
    assert said.exit_code != 0
    assert getattr(said.exception, "code", "storage_unusable") == "storage_unusable", said.output


def test_a_storage_that_is_away_keeps_nothing_from_going_on_later(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    asked: list[str] = []

    def away(*_: object, **__: object) -> None:
        asked.append(threading.current_thread().name)
        raise GenericError("error sending request for url")

    with monkeypatch.context() as patch:
        for step in ("head", "get", "put", "list"):
            patch.setattr(obstore, step, away)
        shard = f"/assignments/{assignment.assignment_id}/shards/{assignment.manifest.blocks[0].digest}"
        refused(hand.http.get(shard), 503, "storage_away")
        assert refused(wire(live).get("/health/ready"), 503, "not_ready").detail == {"lacks": ["storage"]}
        asked.clear()
        export = live.operator.post(f"/runs/{run}/exports")["export_id"]
        wait_for(lambda: len(asked) > 1)  # the job is tried again, and has not failed
    wait_for(lambda: live.operator.get(f"/runs/{run}/exports/{export}")["ready"])
    hand.deliver(assignment)
    assert settled(live, run)["rounds_done"] == 1
    assert live.operator.get(f"/runs/{run}")["state"] != "paused"
