"""Keeps blobs as files in a directory, named by their digest."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from fedcybgd.coordinator.storage import scratch
from fedcybgd.coordinator.storage.base import BlobCorrupt, BlobDamaged, BlobMissing
from fedcybgd.coordinator.storage.blob_file import BlobFile
from fedcybgd.coordinator.storage.full import check_room, full_disk_told
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.files.verified import Verifier
from fedcybgd.shared.files.volumes import move, settle

ASIDE = ".part"
LEFTOVER_AFTER_S = 86_400
"""Age at which a file aside has no writer any more: a killed process left it."""
DAMAGED = "damaged"
DAMAGED_KEPT_S = 30 * 86_400
"""For as long it can be looked at what became of a blob."""
VERIFIER = Verifier()
"""Of this process: what it has hashed once is not hashed again for every job or request."""


class LocalBlobStore:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._aside = root / "incoming"
        self._aside.mkdir(parents=True, exist_ok=True)
        self._sweep_aside()

    @property
    def root(self) -> Path:
        return self._root

    def has(self, digest: str) -> bool:
        return self._place(digest).is_file()

    def size(self, digest: str) -> int:
        try:
            return self._place(digest).stat().st_size
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest}", digest=digest) from None

    def check(self, digest: str) -> None:
        self.path(digest)

    def open(self, digest: str) -> BinaryIO:
        path = self.path(digest)
        try:
            return path.open("rb")
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest}", digest=digest) from None

    def link(self, digest: str, seconds: float) -> str | None:  # noqa: ARG002 - whoever asks reads it from here
        return None

    @contextmanager
    def localised(self, digest: str) -> Iterator[Path]:
        yield self.path(digest)

    def path(self, digest: str) -> Path:
        """The blob's own file, checked."""
        place = self._place(digest)
        try:
            # A second look: what was misread once may lie there as it should.
            if VERIFIER.is_whole(place, digest) or digest_of_file(place) == digest:
                return place
            size = place.stat().st_size
            self._set_aside(place)
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest}", digest=digest) from None
        except OSError as error:
            raise BlobDamaged(f"blob {digest} cannot be read: {error}", digest=digest) from error
        raise BlobDamaged(f"blob {digest} is damaged: its {size} bytes are others than were stored; they lie in {DAMAGED}/", digest=digest)

    def _set_aside(self, place: Path) -> None:
        folder = self._root / DAMAGED
        folder.mkdir(exist_ok=True)
        os.utime(place)
        move(place, folder / f"{place.name}.{secrets.token_hex(4)}")

    def writer(self) -> "LocalBlobWriter":
        return LocalBlobWriter(self, self._aside / f"{secrets.token_hex(8)}{ASIDE}")

    def adopt(self, path: Path, digest: str) -> None:
        actual = digest_of_file(path)
        if actual != digest:
            raise BlobCorrupt(f"the bytes have digest {actual}, not {digest}", expected=digest, actual=actual)
        with full_disk_told(self._root, path.stat().st_size), path.open("rb") as file:
            os.fsync(file.fileno())
            os.utime(path)  # as young as any blob just written: its last byte may have arrived long ago
            self.publish(path, digest)

    def stored(self) -> Iterator[tuple[str, float]]:
        for path in self._root.glob("??/*"):
            if path.suffix == ASIDE:
                continue
            try:
                yield path.name, path.stat().st_mtime
            except FileNotFoundError:
                continue  # deleted meanwhile

    def delete(self, digest: str, written: float | None = None) -> bool:
        """A blob may be written anew at any moment. So its file is taken away first, and put back if it is not the one that was meant."""
        place, away = self._place(digest), self._aside / f"{secrets.token_hex(8)}{ASIDE}"
        try:
            place.replace(away)
            if written is not None and away.stat().st_mtime != written:
                os.link(away, place)
                return False
            return True
        except FileNotFoundError:
            return False
        except FileExistsError:
            return False  # written once more
        finally:
            away.unlink(missing_ok=True)

    def touch(self, digest: str) -> None:
        try:
            os.utime(self._place(digest))
        except FileNotFoundError:
            raise BlobMissing(f"no blob {digest}", digest=digest) from None

    @contextmanager
    def hold(self) -> Iterator[None]:
        with scratch.folder(self._aside, scratch.HOLD):
            yield

    def is_held(self) -> bool:
        return scratch.is_any_held(self._aside, scratch.HOLD)

    def publish(self, path: Path, digest: str) -> None:
        """Move a finished, synced file to its place, so that no reader ever sees half of a blob."""
        place = self._place(digest)
        place.parent.mkdir(exist_ok=True)
        move(path, place)
        settle(place.parent)

    def check_room(self, size: int) -> None:
        check_room(self._root, size)

    def scratch(self) -> AbstractContextManager[Path]:
        return scratch.folder(self._aside)

    def sweep(self) -> None:
        self._sweep_aside()
        for path in self._root.glob(f"??/*{ASIDE}"):
            _delete_leftover(path)
        for path in self._root.glob(f"{DAMAGED}/*"):
            _delete_leftover(path, DAMAGED_KEPT_S)

    def _sweep_aside(self) -> None:
        scratch.clear(self._aside)
        for path in self._aside.glob(f"*{ASIDE}"):
            _delete_leftover(path)

    def _place(self, digest: str) -> Path:
        return self._root / digest[:2] / digest


def _delete_leftover(path: Path, after: float = LEFTOVER_AFTER_S) -> None:
    try:
        if time.time() - path.stat().st_mtime > after:
            path.unlink()
    except FileNotFoundError:
        pass  # its writer has just finished


class LocalBlobWriter(BlobFile):
    """Syncs and renames at the end."""

    def __init__(self, store: LocalBlobStore, path: Path) -> None:
        super().__init__(path, store.root)
        self._store = store

    def publish(self, digest: str) -> None:
        with full_disk_told(self._place, self.size):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._store.publish(self._path, digest)
