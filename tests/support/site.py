"""A site cache in a process of its own, a coordinator that a test plays before it, and agents that sign."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from fedcybgd.agent.assignment_run import fetch_blob
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.agent.site.asking import SiteCache
from fedcybgd.local.process import Process
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import BlobRef
from fedcybgd.shared.contract.words import COORDINATOR
from tests.support.hostile import Answer, Asked
from tests.support.processes import ENVIRONMENT

ME = "crd_" + 16 * "0"
ASSIGNMENT = "asg_" + 16 * "1"


class SiteProcess:
    """`fedagent serve-cache`, which may be killed and started again at its port."""

    def __init__(self, coordinator: str, folder: Path, *options: str) -> None:
        self.folder = folder
        words = ["serve-cache", coordinator, "--directory", str(folder), *options]
        self._process = Process("fedcybgd.agent.cli", words, folder.with_suffix(".log"), {**os.environ, **ENVIRONMENT})
        self._port, self.url = 0, ""

    def start(self) -> "SiteProcess":
        self._process.start(["--port", str(self._port)])
        self._process.wait_until(lambda: bool(self._said()), "the site cache", 30)
        self.url = self._said()[-1]
        self._port = int(self.url.rpartition(":")[2])
        return self

    def _said(self) -> list[str]:
        return re.findall(r"^site cache of \S+ at (http\S+);", self._process.tail(), re.MULTILINE)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> int:
        return self._process.stop()

    @property
    def log(self) -> str:
        return self._process.log.read_text()

    def files(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in (self.folder / "shards").iterdir()}


@contextmanager
def site_cache(coordinator: str, folder: Path, *options: str) -> Iterator[SiteProcess]:
    process = SiteProcess(coordinator, folder, *options).start()
    try:
        yield process
    finally:
        process.stop()


class Played:
    """A coordinator that has blobs, and answers for them as one does; `asked` by whom, for what. `gate` holds bodies back after `first` bytes."""

    def __init__(self, *blobs: bytes) -> None:
        self.blobs = {digest_of(blob): blob for blob in blobs}
        self.refused: set[str] = set()
        """key ids"""
        self.gate, self.first = threading.Event(), 0
        self.gate.set()
        self.says_no = threading.Event()
        """it refuses once this is set"""
        self.says_no.set()
        self.sends_to: str | None = None

    def __call__(self, asked: Asked) -> Answer:
        digest = asked.path.rpartition("/")[2]
        headers = {COORDINATOR: ME, "ETag": f'"{digest}"'}
        if any(key in asked.headers.get("signature-input", "") for key in self.refused):
            self.says_no.wait(30)
            return Answer.json({"code": "lease_lost", "message": "no", "detail": {}}, 409, **{COORDINATOR: ME})
        if digest not in self.blobs:
            return Answer.json({"code": "not_found", "message": "no", "detail": {}}, 404, **{COORDINATOR: ME})
        if digest in asked.headers.get("if-none-match", ""):
            return Answer(304, b"", headers)
        if self.sends_to is not None and asked.headers.get("fedcybgd-elsewhere") == "yes":
            return Answer(307, b"", headers | {"Location": f"{self.sends_to}/{digest}?X-Amz-Signature=secret"})
        return self.bytes_of(asked, self.blobs[digest], headers)

    def bytes_of(self, asked: Asked, blob: bytes, headers: dict[str, str]) -> Answer:
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        body = blob[start:]
        if start:
            headers = headers | {"Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"}
        return Answer(206 if start else 200, body[: self.first], headers | {"Content-Length": str(len(body))}, stream=self._rest(body))

    def _rest(self, body: bytes) -> Iterator[bytes]:
        if self.first < len(body):
            self.gate.wait(30)
            yield body[self.first :]


def bodies(asked: list[Asked]) -> list[Asked]:
    """The requests that asked for bytes, and not only whether they may be had."""
    return [one for one in asked if "if-none-match" not in one.headers]


class SiteAgent:
    """What of an agent fetches: a client that signs, a cache, a site cache."""

    def __init__(self, coordinator: str, site: str | None, folder: Path, signer: Signer | None = None) -> None:
        self.signer = signer or Signer(new_private_key())
        self.client = Client(coordinator, self.signer, storage=[])
        self.cache = ShardCache(folder, 1 << 30)
        self.site = SiteCache(self.client, site)

    def fetch(self, digest: str, size: int, assignment_id: str = ASSIGNMENT) -> bytes:
        """As a visit does."""
        tools: Any = SimpleNamespace(client=self.client, cache=self.cache, site=self.site)
        assignment: Any = SimpleNamespace(assignment_id=assignment_id)
        return fetch_blob(tools, assignment, BlobRef(digest=digest, size=size)).read_bytes()


def signed(signer: Signer, path: str, method: str = "GET") -> dict[str, str]:
    """The headings of a request to a coordinator's `path`."""
    request = signer.once(httpx.Request(method, f"http://any{path}"))
    return {name: request.headers[name] for name in ("Signature", "Signature-Input")}
