"""The real API and the real engine on object storage, by one setting."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedcybgd.coordinator.backup import backup
from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.common import StoreDiffers
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import StorageUnusable
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, operator, settled, start_run


@pytest.fixture
def live(tmp_path: Path, bert: Path) -> Iterator[LiveCoordinator]:
    live = LiveCoordinator(tmp_path / "home", storage=f"file://{tmp_path / 'bucket'}")
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
