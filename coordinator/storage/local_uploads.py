"""Keeps uploads as files in a directory beside the blobs."""

import errno
import os
import re
import time
from pathlib import Path
from typing import BinaryIO

from fedcybgd.coordinator.storage.base import StoreFull
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.coordinator.storage.uploads import NothingArrived

SUFFIX = ".part"
KEY = re.compile(r"[A-Za-z0-9_-]+")


class LocalUploads:
    def __init__(self, folder: Path, store: LocalBlobStore) -> None:
        self._folder, self._store = folder, store

    def offset(self, key: str) -> int:
        try:
            return self._place(key).stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, key: str, at: int, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(self._place(key), os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.seek(at)
                file.write(data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull("the coordinator's disk is full; what arrived is kept, try again later") from error
            raise

    def open(self, key: str) -> BinaryIO:
        try:
            return self._place(key).open("rb")
        except FileNotFoundError:
            raise NothingArrived(key) from None

    def finish(self, key: str, digest: str) -> None:
        try:
            self._store.adopt(self._place(key), digest)
        except FileNotFoundError:
            raise NothingArrived(key) from None

    def discard(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def sweep(self, older_than_s: float) -> None:
        for path in self._folder.glob(f"*{SUFFIX}"):
            try:
                if time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()
            except FileNotFoundError:
                continue  # submitted meanwhile

    def _place(self, key: str) -> Path:
        assert KEY.fullmatch(key)
        return self._folder / f"{key}{SUFFIX}"
