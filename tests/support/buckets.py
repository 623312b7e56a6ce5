"""Object storage for tests: in memory, in a directory, and on a real S3 server where `S3_PROGRAMS` says where its programs are (`make s3`)."""

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from fedcybgd.coordinator.storage.bucket import Bucket, reach
from tests.support.s3_server import S3Server

S3 = "S3_PROGRAMS" in os.environ


def in_memory(_folder: Path, _monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bucket]:
    store = MemoryStore()
    return lambda: Bucket(store, "memory")


def in_directory(folder: Path, _monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bucket]:
    return lambda: reach(f"file://{folder / 'bucket'}")


def in_s3(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bucket]:
    address = url("s3", _folder, monkeypatch)
    return lambda: reach(address)


def url(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new place in a directory or on the server, and the environment that it needs."""
    if kind == "directory":
        return f"file://{folder / 'bucket'}"
    for name, value in running().environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{made('bucket')}/{secrets.token_hex(4)}"


KINDS = {"memory": in_memory, "directory": in_directory} | ({"s3": in_s3} if S3 else {})


@cache
def running() -> S3Server:
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    server = S3Server(Path(os.environ["S3_PROGRAMS"]), folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stop)
    server.wait()
    return server


@cache
def made(bucket: str) -> str:
    """A bucket of the server."""
    running().make(bucket)
    return bucket


def objects(bucket: Bucket, prefix: str = "") -> dict[str, bytes]:
    names = [found.name for folder in ([prefix] if prefix else ["blobs", "damaged", "uploads"]) for found in bucket.list(folder)]
    return {name: bucket.read(name) or b"" for name in names}


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The storage takes nothing more."""
    with monkeypatch.context() as patch:
        fill(patch)
        yield


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> Any:
        raise GenericError("Server returned non-2xx status code: 507 Insufficient Storage: XMinioStorageFull")

    monkeypatch.setattr(obstore, "put", no_room)
