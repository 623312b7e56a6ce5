"""A reverse proxy that sends blobs by itself is told where they are; nobody else is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.words import ACCEL
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, start_run


@pytest.fixture
def live(tmp_path: Path, bert: Path) -> Iterator[LiveCoordinator]:
    live = LiveCoordinator(tmp_path / "home", accel="/blobs/")
    live.add_model("bert", bert)
    yield live
    live.stop()


def test_the_proxy_is_told_where_a_blob_is(live: LiveCoordinator) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    place, by_proxy = f"/assignments/{assignment.assignment_id}/shards/{ref.digest}", {ACCEL: "yes"}
    told = hand.http.get(place, headers=by_proxy)
    assert (told.status_code, told.content) == (200, b"")
    file = live.settings.blobs / told.headers["x-accel-redirect"].removeprefix("/blobs/")
    assert digest_of(file.read_bytes()) == ref.digest
    wait_for(lambda: live.operator.get(f"/runs/{run}")["bytes"]["down"] == ref.size)
    hand.http.get(place, headers=by_proxy | {"Range": "bytes=10-"})
    wait_for(lambda: live.operator.get(f"/runs/{run}")["bytes"]["down"] == 2 * ref.size - 10)
    direct = hand.http.get(place)
    assert (digest_of(direct.content), "x-accel-redirect" in direct.headers) == (ref.digest, False)
    assert hand.http.get(place, headers=by_proxy | {"If-None-Match": f'"{ref.digest}"'}).status_code == 304


def test_a_blob_that_is_damaged_is_not_left_to_the_proxy(live: LiveCoordinator) -> None:
    hand = Hand(live)
    run = start_run(live, "bert", [hand])
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    live.store.path(ref.digest).write_bytes(b"?")
    answer = hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{ref.digest}", headers={ACCEL: "yes"})
    assert (answer.status_code, "x-accel-redirect" in answer.headers) == (503, False)


@pytest.mark.parametrize("path", ["blobs", "/", "/blobs", "http://blobs/", "/a\n/"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        Settings(accel=path)
