"""Where the blobs of a fleet lie, for whoever spoils or reads them: a directory, or a bucket of a real S3 server behind a bad network."""

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import obstore
from obstore.store import LocalStore, ObjectStore, S3Store

from tests.faults.proxy import Proxy
from tests.support.s3_server import KEY, REGION, SECRET, S3Server

BUCKET = "faults"
PROGRAMS = Path(__file__).parents[2] / ".venv-s3" / "bin"
"""of OpenStack Swift, where `make` has installed it"""


class Kept(Protocol):
    """The blobs by their digests; `FileNotFoundError` where there is none."""

    def read(self, digest: str) -> bytes: ...
    def write(self, digest: str, data: bytes) -> None: ...
    def delete(self, digest: str) -> None: ...


class InObjects:
    """In any store that the library knows; none of the product's code is between."""

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self._store, self._folder = store, folder

    def read(self, digest: str) -> bytes:
        return bytes(obstore.get(self._store, self._name(digest)).bytes())

    def write(self, digest: str, data: bytes) -> None:
        obstore.put(self._store, self._name(digest), data)

    def delete(self, digest: str) -> None:
        with suppress(FileNotFoundError):
            obstore.delete(self._store, self._name(digest))

    def _name(self, digest: str) -> str:
        return f"{self._folder}/{digest[:2]}/{digest}"


def in_folder(folder: Path) -> Kept:
    return InObjects(LocalStore(folder.parent, mkdir=True), folder.name)


class Storage:
    """An S3 server, and the line to it, which all coordinators and agents of a fleet have in common."""

    def __init__(self) -> None:
        programs = Path(os.environ.get("S3_PROGRAMS", PROGRAMS))
        if not programs.is_dir():
            raise SystemExit(
                "an S3 server is needed: `make chaos STORAGE=s3` installs it, or S3_PROGRAMS names the folder of Swift's programs"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="fedcybgd-s3-"))
        self.server = S3Server(programs, self._folder)
        try:
            self.server.wait()
            self.server.make(BUCKET)
            self.proxy = Proxy(int(self.server.endpoint.rsplit(":", 1)[1]))
        except BaseException:
            self.server.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """Of a coordinator that is to have its blobs there."""
        return {**self.server.environment, "AWS_ENDPOINT_URL": self.proxy.url}

    def new_place(self) -> tuple[str, Kept]:
        """The address of an empty place, and what lies there: as it lies, by a line of its own to which nothing happens."""
        prefix = secrets.token_hex(4)
        store = S3Store(
            BUCKET, access_key_id=KEY, secret_access_key=SECRET, region=REGION, endpoint=self.server.endpoint, client_options={"allow_http": True}
        )  # fmt: skip
        return f"s3://{BUCKET}/{prefix}", InObjects(store, f"{prefix}/blobs")

    def stop(self) -> None:
        self.proxy.close()
        self.server.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
