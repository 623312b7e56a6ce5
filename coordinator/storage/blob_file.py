"""A blob that is written to a file aside and hashed meanwhile; at the end its store publishes the file under the digest."""

import hashlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from fedcybgd.coordinator.storage.full import full_disk_told


class BlobFile:
    """A `BlobWriter` but for what its store does at the end. Nothing of the file is left, unless that has moved it."""

    def __init__(self, path: Path, place: Path) -> None:
        """`place` is what is said to be full where it does not fit."""
        self.digest = ""
        self.size = 0
        self._path, self._place, self._hash = path, place, hashlib.sha256()
        with full_disk_told(place, 1):
            self._file = path.open("wb")

    def write(self, data: bytes | memoryview) -> None:
        with full_disk_told(self._place, self.size + len(data)):
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def publish(self, digest: str) -> None:
        """Close the file, and have it in the store."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.publish(digest := self._hash.hexdigest())
                self.digest = digest
        finally:
            with suppress(OSError):  # the error that matters is on its way
                self._file.close()
            self._path.unlink(missing_ok=True)
