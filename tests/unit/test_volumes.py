"""Files reach their place whole, also on another file system than the one where they were written."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.residuals import Residuals
from fedcybgd.coordinator.storage import BlobCorrupt, StoreFull, open_store
from fedcybgd.shared.contract.assignments import AddedDelta
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.files import volumes
from fedcybgd.shared.files.volumes import move
from tests.support.volumes import two_volumes
from tests.unit.test_outbox import assignment

DATA = bytes(range(256)) * 9000
DIGEST = digest_of(DATA)


@pytest.fixture(params=["simulated", "real"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    with two_volumes(request.param, tmp_path, monkeypatch) as found:
        with pytest.raises(OSError, match="device"):
            _file(found[0] / "probe").replace(found[1] / "probe")
        (found[0] / "probe").unlink()
        yield found


def _file(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_arrives_whole_and_is_gone_from_where_it_was(pair: tuple[Path, Path]) -> None:
    source, target = _file(pair[0] / "a"), _file(pair[1] / "b", b"old")
    move(source, target)
    assert (files(pair[0]), files(pair[1])) == ({}, {"b": DATA})


def test_where_there_is_no_room_all_is_as_it_was(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = _file(pair[0] / "a"), _file(pair[1] / "b", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(volumes.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        move(source, target)
    assert (files(pair[0]), files(pair[1])) == ({"a": DATA}, {"b": b"old"})


def test_a_delta_is_taken_in_from_another_volume(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(pair[1] / "blobs")
    delta = _file(pair[0] / "uploads" / "x.part")
    with pytest.raises(BlobCorrupt):
        store.adopt(delta, digest_of(b"another"))
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(volumes.os, "fsync", full)
        with pytest.raises(StoreFull):
            store.adopt(delta, DIGEST)
    assert (list(files(pair[0]).values()), files(pair[1])) == ([DATA], {})
    store.adopt(delta, DIGEST)
    assert (files(pair[0]), files(pair[1])) == ({}, {f"blobs/{DIGEST[:2]}/{DIGEST}": DATA})
    assert [digest for digest, _ in store.stored()] == [DIGEST]


def test_what_a_crash_left_of_a_copy_is_no_blob_and_is_swept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    young, old = (_file(tmp_path / DIGEST[:2] / f"{DIGEST}.{n}.part", DATA[:1000]) for n in ("1", "2"))
    os.utime(old, (1, 1))
    assert list(store.stored()) == []
    assert not store.has(DIGEST)
    store.sweep()
    assert young.exists()
    assert not old.exists()


def test_an_agents_cache_and_residuals_take_files_from_another_volume(pair: tuple[Path, Path]) -> None:
    cache = ShardCache(pair[1] / "cache", 1 << 30)
    cache.adopt(_file(pair[0] / "outbox" / "delta"), DIGEST)
    assert cache.path(DIGEST).read_bytes() == DATA
    _file(pair[0] / "outbox" / "left" / "layers.0.safetensors")
    residuals = Residuals(pair[1] / "residuals")
    residuals.keep(assignment(), DIGEST, pair[0] / "outbox" / "left")
    delta = AddedDelta(block="layers.0", assignment_id=assignment().assignment_id, digest=DIGEST)
    (kept,) = residuals.of(assignment().run_id, [delta]).values()
    assert Path(kept).read_bytes() == DATA
    assert files(pair[0]) == {}
