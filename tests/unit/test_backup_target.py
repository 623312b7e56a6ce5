"""Where a backup may not be written: into what it copies, and among files of others."""

from pathlib import Path

import pytest

from fedcybgd.coordinator.backup import BackupMisplaced, backup
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.settings import Settings
from tests.support.migrated import begin_with_schema


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    begin_with_schema(settings.url)
    prepare_home(settings)
    settings.blobs.mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(settings.home)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    return settings


@pytest.mark.parametrize("target", ["home", "link", "home/blobs", "home/inside/deep", "", "photos", "file", "file/below"])
def test_a_place_that_is_none_is_refused_and_left_as_it_was(settings: Settings, tmp_path: Path, target: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BackupMisplaced):
        backup(settings, tmp_path / target)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_new_directory_and_one_with_an_earlier_backup_are_taken(settings: Settings, tmp_path: Path) -> None:
    for _ in range(2):
        backup(settings, tmp_path / "copies/today")
    assert (tmp_path / "copies/today/coordinator.db").is_file()
