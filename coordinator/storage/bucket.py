"""Objects by name in object storage, through the library obstore; what goes wrong is said in the coordinator's own errors."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.storage.base import StoreFull

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3://", "file://")
PIECE = 8 << 20
"""Bytes of a part of a large object; four at a time are in memory."""
MOST_PARTS = 9000
"""S3 has at most 10,000 of an object."""
CHUNK = 1 << 20
CLIENT = {"connect_timeout": timedelta(seconds=5), "read_timeout": timedelta(seconds=30), "timeout": timedelta(hours=1)}
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20), "backoff": {"init_backoff": timedelta(milliseconds=200)}}
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3")
FULL = ("StorageFull", "QuotaExceeded", "507 Insufficient Storage", "No space left on device", "Disk quota exceeded")
"""How stores say that there is no room."""


class StorageUnusable(CoordinatorError):
    """The object storage cannot be used as it is named: a coordinator does not start on it."""

    code = "storage_unusable"


class StorageAway(CoordinatorError):
    """The object storage does not answer, or refuses; that may be another time."""

    code = "storage_away"
    status = 503


class Found(NamedTuple):
    name: str
    size: int
    modified: float
    """by the storage's own clock, in Unix time"""


class Bucket:
    """Nothing is tried for longer than half a minute, but for the bytes of large objects. Threads may share one."""

    def __init__(self, store: "ObjectStore", called: str, signing: "ObjectStore | None" = None) -> None:
        """`called` names it to people; `signing` is what signs links, where there are any."""
        self._store, self._called, self._signing = store, called, signing

    def find(self, name: str) -> Found | None:
        import obstore

        try:
            with self._understood():
                return _found(obstore.head(self._store, name))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """A small object."""
        import obstore

        try:
            with self._understood():
                return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of an object, as they come; raises `FileNotFoundError`."""
        import obstore

        with self._understood():
            for chunk in obstore.get(self._store, name).stream(min_chunk_size=CHUNK):
                yield memoryview(chunk)

    def put(self, name: str, data: bytes) -> None:
        import obstore

        with self._understood():
            obstore.put(self._store, name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write it unless there is one of that name; whether it was written."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._understood():
                obstore.put(self._store, name, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def upload(self, name: str, path: Path, size: int) -> None:
        """Write a file; it is there whole, or not at all, or as it was."""
        import obstore

        with self._understood():
            obstore.put(self._store, name, path, chunk_size=max(PIECE, size // MOST_PARTS), max_concurrency=4)

    def list(self, prefix: str) -> Iterator[Found]:
        """All objects whose names begin with `prefix`, a folder."""
        import obstore

        with self._understood():
            for some in obstore.list(self._store, prefix):
                yield from map(_found, some)

    def delete(self, names: Iterable[str]) -> None:
        """What is not there is no error."""
        import obstore

        for name in names:  # one by one: not every store that calls itself compatible has the call for many
            try:
                with self._understood():
                    obstore.delete(self._store, name)
            except FileNotFoundError:
                continue

    def move(self, name: str, to: str) -> None:
        import obstore

        with self._understood():
            obstore.rename(self._store, name, to)

    def link(self, name: str, seconds: float) -> str | None:
        """An address at which anybody may read it for so long."""
        import obstore

        if self._signing is None:
            return None
        with self._understood():
            return obstore.sign(self._signing, "GET", name, timedelta(seconds=seconds))  # type: ignore[call-overload, no-any-return]

    @contextmanager
    def _understood(self) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            yield
        except AlreadyExistsError:
            raise
        except (BaseError, OSError, ValueError) as error:
            said = _plain(error)
            if any(word in said for word in FULL):
                raise StoreFull(
                    f"the object storage {self._called} is full: {said[:300]}; what arrived is kept, try again later"
                ) from error
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in said:
                raise
            raise StorageAway(
                f"the object storage {self._called} does not serve: {said[:300]}; nothing is lost, ask again later"
            ) from error


def reach(url: str, links: str | None = None) -> Bucket:
    """The object storage at `url`. Credentials, region and endpoint are those of the environment (AWS_…). Raises `StorageUnusable`."""
    if not url.startswith(SCHEMES):
        raise StorageUnusable(f"FEDCOORD_STORAGE={url} is no address of object storage: write s3://bucket/prefix")
    if url.startswith("s3://") and re.search("[@?]", url):  # keys there would be said by every message that names the storage
        raise StorageUnusable(
            "FEDCOORD_STORAGE is s3://bucket/prefix and nothing else, without @ or ?: keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if links is not None and links != "off" and not re.match(r"https?://[^/]", links):
        raise StorageUnusable(f"FEDCOORD_STORAGE_LINKS={links} is no address of object storage: write https://…, or off")
    try:
        from obstore import store as stores
        from obstore.exceptions import BaseError
    except ModuleNotFoundError as error:
        raise StorageUnusable(f"object storage needs the Python package {error.name}: pip install '.[s3]'") from error
    try:
        if url.startswith("file://"):
            return Bucket(stores.from_url(url, mkdir=True), url)
        # Plain HTTP where it was written down so.
        client: Any = CLIENT | {"allow_http": any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)}
        store = stores.from_url(url, client_options=client, retry_config=RETRIES)
        if links is None or links == "off":
            return Bucket(store, url, None if links else store)
        elsewhere: Any = CLIENT | {"allow_http": links.startswith("http://")}
        return Bucket(store, url, stores.from_url(url, client_options=elsewhere, retry_config=RETRIES, endpoint=links))
    except (BaseError, ValueError, TypeError, OSError) as error:
        raise StorageUnusable(f"FEDCOORD_STORAGE={url} cannot be used: {_plain(error)}") from error


def _found(meta: Any) -> Found:
    return Found(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _plain(error: BaseException) -> str:
    """What the library says, without what it says to those who debug it."""
    said = str(error).partition("Debug source:")[0]
    return " ".join(said.split()) or type(error).__name__


def label(url: str, name: str, text: str) -> str:
    """What the object `name` says, which is made with `text` by whoever comes first.

    Everything that a coordinator needs of object storage is tried out before. Raises `StorageUnusable` where it lacks.
    """
    bucket, probe = reach(url), f"probe/{secrets.token_hex(8)}"
    try:
        first, again = bucket.create(probe, b"?"), bucket.create(probe, b"??")
        read = bucket.read(probe)
        bucket.delete([probe])
        if not first or again or read != b"?":
            raise StorageUnusable(
                f"{url}: this storage lets an object be overwritten that was to be made only where there is none (If-None-Match), "
                "so two coordinators could not share it safely; use S3, or a store that honours it"
            )
        bucket.create(name, text.encode())
        return (bucket.read(name) or b"").decode("utf-8", "replace")
    except StorageAway as error:
        advice = "does the bucket exist, may these keys read, write, list and delete in it, and is AWS_ENDPOINT_URL right?"
        raise StorageUnusable(f"FEDCOORD_STORAGE: {error.message.partition('; nothing is lost')[0]}; {advice}") from error
