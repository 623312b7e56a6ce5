"""The operator's HTTP client: what the command line says to a coordinator."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx

from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import API
from fedcybgd.shared.files.paths import inside, open_for_appending
from fedcybgd.shared.host.addresses import AddressInvalid, address_of, hint
from fedcybgd.shared.host.terminal import Terminal

DEFAULT_URL = "http://127.0.0.1:8440"
CHUNK = 1 << 20
T = TypeVar("T")


def print_notice(text: str) -> None:
    Terminal(stderr=True).say(text, "yellow")


class OperatorError(FedError):
    """What the coordinator answered, or that it did not."""

    code = "operator_error"


class CoordinatorAway(OperatorError):
    """No answer, or one of something that stands before the coordinator: later it may be another."""


class Operator:
    def __init__(self, url: str | None = None, key: str | None = None, timeout: float = 60) -> None:
        self.url = address_of(url or os.environ.get("FEDCOORD_URL") or DEFAULT_URL)
        key = (key or os.environ.get("FEDCOORD_OPERATOR_KEY", "")).strip()
        if key and re.fullmatch(r"[!-~]+", key) is None:
            raise OperatorError("FEDCOORD_OPERATOR_KEY has characters that no key has; copy it again, from fco_ to its end")
        try:
            self._http = httpx.Client(base_url=self.url + API, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=timeout)
        except (httpx.InvalidURL, ValueError) as error:
            raise AddressInvalid(f"{self.url} is no address of a coordinator ({error}); set FEDCOORD_URL") from error
        self._has_key = bool(key)
        self._answered = False
        self.notice: Callable[[str], None] = print_notice
        """Told once when a coordinator that has answered before does not"""

    def get(self, path: str, **params: Any) -> Any:
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Any = None) -> Any:
        return self._call("POST", path, json=body)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            why = f"{error or type(error).__name__}{hint(self.url, error)}"
            raise CoordinatorAway(
                f"no coordinator answers at {self.url} ({why}). Is `fedcoord serve` running? Set FEDCOORD_URL if it is elsewhere"
            ) from error
        return self._answer(answer)

    def patiently(self, call: Callable[[], T], every: float = 1.0, limit: float = 86_400) -> T:
        """Call until it works: once a coordinator has answered, it may be restarted meanwhile. What it refuses is raised."""
        until, told = time.monotonic() + limit, False
        while True:
            try:
                return call()
            except CoordinatorAway as error:
                if not self._answered or time.monotonic() > until:
                    raise
                if not told:
                    self.notice(f"{error.message}; waiting for it")
                told = True
                time.sleep(every)

    def _answer(self, answer: httpx.Response) -> Any:
        if answer.is_success:
            try:
                value = answer.json()
            except ValueError as error:
                raise CoordinatorAway(f"{self.url} answered something else than a coordinator would: is it one?") from error
            self._answered = True
            return value
        if answer.status_code == 401 and not self._has_key:
            raise OperatorError(
                "set FEDCOORD_OPERATOR_KEY to the operator's key (`fedcoord serve` printed it once; `fedcoord operator rotate` makes a new one)"
            )
        try:
            body = answer.json()
            raise OperatorError(f"{body['message']} [{body['code']}]", code=body["code"], **body.get("detail", {}))
        except (ValueError, KeyError, TypeError) as error:
            kind = CoordinatorAway if answer.status_code >= 500 or answer.status_code == 429 else OperatorError
            raise kind(f"{self.url} answered {answer.status_code}: is it a coordinator?") from error

    def wait(self, look: Callable[[], Any], done: Callable[[Any], bool], every: float = 0.2, limit: float = 86_400) -> Any:
        """Look until `done`; raises `OperatorError` after `limit` seconds."""
        until = time.monotonic() + limit
        while not done(value := self.patiently(look)):
            if time.monotonic() > until:
                raise OperatorError(f"nothing came within {limit:g} s")
            time.sleep(every)
        return value

    def upload_held_out(self, path: Path) -> str:
        digest = digest_of_file(path)
        with path.open("rb") as file:
            self._call("PUT", f"/held-out/{digest}", params={"name": path.name}, content=iter(lambda: file.read(CHUNK), b""))
        return digest

    def download(self, path: str, target: Path, digest: str, size: int) -> None:
        """Fetch a file aside, verify it, rename it; an earlier part is resumed. Not a byte more than `size` is written."""
        part = inside(target.parent, f".{target.name}.part")
        with os.fdopen(open_for_appending(part), "ab") as file:
            if part.stat().st_size > size:
                file.truncate(0)
            if (have := part.stat().st_size) < size:
                self._receive(path, file, have, size)
        if digest_of_file(part) != digest:
            part.unlink()
            raise OperatorError(f"{target.name} arrived damaged; run the command again")
        part.replace(target)

    def _receive(self, path: str, file: BinaryIO, have: int, size: int) -> None:
        # As they are: a proxy that compressed them would make ranges mean something else.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if not answer.is_success and answer.status_code != 416:
                    answer.read()
                    self._answer(answer)
                if answer.status_code != 206:
                    have = file.truncate(0)
                for chunk in answer.iter_raw() if answer.is_success else ():  # as it comes: what is buffered would be lost at a cut
                    have += len(chunk)
                    if have > size:
                        file.truncate(0)
                        raise OperatorError(f"{path} has more bytes than the {size} that were announced; they were thrown away")
                    file.write(chunk)
        except httpx.HTTPError as error:
            raise CoordinatorAway(
                f"the transfer from {self.url} was cut: {error or type(error).__name__}; run the command again, it goes on there"
            ) from error
        if have < size:
            raise CoordinatorAway(f"{path} ended after {have} of {size} bytes; run the command again, it goes on there")
