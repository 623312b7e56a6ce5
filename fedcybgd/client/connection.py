"""HTTP with a coordinator, under the operator's key: JSON, typed answers, lists page by page, and patience with the weather."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from fedcybgd.client.errors import AnswerInvalid, BodyLimited, ClientError, CoordinatorAway, FileUnusable, KeyInvalid, Refused, TimedOut
from fedcybgd.shared.contract.words import API, NAME_CHARACTERS, NEXT, ErrorBody, problem_in_words
from fedcybgd.shared.host.addresses import DIRECT, AddressInvalid, address_of, check_way, hint
from fedcybgd.shared.host.authorities import believed
from fedcybgd.shared.host.bodies import BodyInvalid, whole

DEFAULT_URL = "http://127.0.0.1:8440"
PAGE = 1000
"""Entries of a list that are asked for at once"""
MOST_JSON, WITHIN_S = 64 << 20, 600.0
"""Bytes of an answer, and seconds in which it is there; the provenance of a run of thousands of rounds has a few million. Who answers may be anybody."""
ABOUT_THE_BYTES = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headings that say how a body came; it is plain by the time anybody reads it."""
DAY_S = 86_400.0
T = TypeVar("T")
LIST = TypeAdapter(list[object])
Params = Mapping[str, str | int | float | None]
log = logging.getLogger("fedcybgd")


class Connection:
    """One connection pool; safe to use from several threads."""

    def __init__(self, url: str | None = None, key: str | None = None, timeout_s: float = 60, patience_s: float = 30) -> None:
        self.url = address_of(url or os.environ.get("FEDCOORD_URL") or DEFAULT_URL)
        key = (key or os.environ.get("FEDCOORD_OPERATOR_KEY", "")).strip()
        if key and re.fullmatch(r"[!-~]+", key) is None:
            raise KeyInvalid("FEDCOORD_OPERATOR_KEY has characters that no key has; copy it again, from fco_ to its end")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(
                base_url=self.url + API, headers=headers, timeout=timeout_s, verify=believed(httpx.create_ssl_context), mounts=DIRECT
            )
        except OSError as error:
            raise FileUnusable(f"certificate authorities cannot be read ({error}): look at SSL_CERT_FILE and SSL_CERT_DIR") from error
        except (httpx.InvalidURL, ValueError) as error:
            raise AddressInvalid(f"{self.url} is no address of a coordinator ({error}); set FEDCOORD_URL") from error
        check_way(self.url, os.environ.get("FEDCOORD_PLAIN_HTTP") == "allowed", "set FEDCOORD_PLAIN_HTTP=allowed")
        self._has_key = bool(key)
        self.patience_s = patience_s
        self._answered = False
        self._told = False
        self.notice: Callable[[str], None] = log.warning
        """Told once when a coordinator that has answered before does not"""

    def close(self) -> None:
        self._http.close()

    # ---- JSON ---------------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: str | int | float | None) -> object:
        """The JSON of an answer, as it came."""
        return self._json(self.send("GET", path, params=params))

    def post(self, path: str, body: object = None) -> object:
        """The JSON of an answer, as it came; the call is not repeated."""
        return self._json(self.send("POST", path, body=body))

    def every(self, path: str, **params: str | int | float | None) -> list[object]:
        """The JSON of all entries of a list, page by page."""
        return [entry for answer in self._pages(path, params) for entry in self._entries(answer)]

    # ---- typed ----------------------------------------------------------------------------------------------------------

    def read(self, kind: type[T], path: str, params: Params | None = None) -> T:
        """What a GET answers; repeated while the coordinator is away."""
        return self._typed(kind, self.patiently(partial(self.send, "GET", path, params=params)))

    def ask(self, kind: type[T], path: str, body: BaseModel, params: Params | None = None) -> T:
        """What a POST answers that changes nothing; repeated while the coordinator is away."""
        return self._typed(kind, self.patiently(partial(self.send, "POST", path, params=params, body=_plain(body))))

    def do(self, kind: type[T], path: str, body: BaseModel | None = None) -> T:
        """What a POST answers that changes something: it is sent once, and who hears no answer must look."""
        return self._typed(kind, self.send("POST", path, body=_plain(body)))

    def put(self, kind: type[T], path: str, params: Params, content: Iterable[bytes], size: int) -> T:
        """What a PUT of `size` bytes answers; it is sent once."""
        return self._typed(kind, self.send("PUT", path, params=params, content=content, size=size))

    def pages(self, kind: type[T], path: str, params: Params | None = None) -> Iterator[T]:
        """The entries of a list; each page is fetched when it is reached."""
        for answer in self._pages(path, params or {}):
            adapter = TypeAdapter(kind)
            yield from (self._validated(adapter, entry) for entry in self._entries(answer))

    def _pages(self, path: str, params: Params) -> Iterator[httpx.Response]:
        place: Params = {}
        while True:
            query = {"limit": PAGE, **params, **place}
            yield (answer := self.patiently(partial(self.send, "GET", path, params=query)))
            if (after := answer.headers.get(NEXT)) is None:
                return
            if place.get("after") == after:
                raise AnswerInvalid(f"{self.url} answered with the same page of {path} again: is it a coordinator?")
            place = {"after": after}

    # ---- patience ---------------------------------------------------------------------------------------------------------

    def patiently(self, call: Callable[[], T], every: float = 1.0, limit: float | None = None) -> T:
        """Call until it works, every so many seconds and for so many: once a coordinator has answered, it may be restarted meanwhile. What it refuses is raised."""
        until = time.monotonic() + (self.patience_s if limit is None else limit)
        while True:
            try:
                return call()
            except CoordinatorAway as error:
                if not self._answered or time.monotonic() + every > until:
                    raise
                if not self._told:
                    self.notice(f"{error.message}; waiting for it")
                self._told = True
                time.sleep(every)

    def wait(self, look: Callable[[], T], done: Callable[[T], bool], every: float = 0.2, limit: float = DAY_S) -> T:
        """Look until `done`. Raises `TimedOut` after `limit` seconds; a coordinator that is away meanwhile is waited for."""
        until = time.monotonic() + limit
        while not done(value := self.patiently(look, limit=max(0.0, until - time.monotonic()))):
            if time.monotonic() > until:
                raise TimedOut(f"what was waited for did not come within {limit:g} s")
            time.sleep(every)
        return value

    # ---- one call -----------------------------------------------------------------------------------------------------------

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: object = None,
        content: Iterable[bytes] | None = None,
        size: int | None = None,
    ) -> httpx.Response:
        """One call, with JSON or with `size` bytes; an answer that is not 2xx is raised. Raises `CoordinatorAway`, `Refused`, `KeyInvalid`."""
        query = {name: value for name, value in (params or {}).items() if value is not None}
        headers = {} if size is None else {"Content-Length": str(size)}
        try:
            with self._http.stream(method, path, params=query or None, json=body, content=content, headers=headers) as stream:
                answer = self.whole(stream)
        except httpx.HTTPError as error:
            why = f"{error or type(error).__name__}{hint(self.url, error)}"
            raise CoordinatorAway(
                f"no coordinator answers at {self.url} ({why}). Is `fedcoord serve` running? Set FEDCOORD_URL if it is elsewhere"
            ) from error
        self.check(answer)
        return answer

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The answer to a GET whose body is read as it comes; whatever its status is."""
        with self._http.stream("GET", path, headers=headers) as answer:
            yield answer

    def whole(self, stream: httpx.Response) -> httpx.Response:
        """An answer with its body, which is read no further than it may be long."""
        try:
            content = whole(stream.iter_raw(), stream.headers.get("content-encoding", ""), MOST_JSON, WITHIN_S)
        except BodyInvalid as error:
            raise AnswerInvalid(f"{self.url}: {error.message}: is it a coordinator?") from error
        headers = {name: value for name, value in stream.headers.items() if name not in ABOUT_THE_BYTES}
        return httpx.Response(stream.status_code, headers=headers, content=content, request=stream.request)

    def check(self, answer: httpx.Response) -> None:
        """Raise what an answer says that is not 2xx; its body has been read."""
        if answer.is_success:
            return
        if answer.status_code == 401 and not self._has_key:
            raise KeyInvalid(
                "set FEDCOORD_OPERATOR_KEY to an operator's key (the first is in operator.key in the coordinator's home; `fedcoord operators recover` makes another)"
            )
        try:
            body = ErrorBody.model_validate_json(answer.content)
        except ValidationError as error:
            if answer.status_code == 413:
                size = answer.request.headers.get("Content-Length", "some")
                raise BodyLimited(
                    f"something between here and {self.url} answered 413 to a body of {size} bytes: a limit of a proxy "
                    "(client_max_body_size in nginx); its operator has to raise it"
                ) from error
            weather = answer.status_code >= 500 or answer.status_code == 429
            kind = CoordinatorAway if weather else ClientError
            raise kind(f"{self.url} answered {answer.status_code}: is it a coordinator?") from error
        if answer.status_code in (429, 503):
            self._answered = True
            raise CoordinatorAway(f"{body.message} [{body.code}]")
        self._heard()
        raise Refused(answer.status_code, body.code, body.message, body.detail)

    def _heard(self) -> None:
        self._answered, self._told = True, False

    def _json(self, answer: httpx.Response) -> object:
        try:
            value: object = answer.json()
        except (ValueError, RecursionError) as error:
            raise CoordinatorAway(f"{self.url} answered something else than a coordinator would: is it one?") from error
        self._heard()
        return value

    def _entries(self, answer: httpx.Response) -> list[object]:
        return self._validated(LIST, self._json(answer))

    def _typed(self, kind: type[T], answer: httpx.Response) -> T:
        return self._validated(TypeAdapter(kind), self._json(answer))

    def _validated(self, adapter: TypeAdapter[T], value: object) -> T:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise AnswerInvalid(
                f"{self.url} gave an answer that this version does not know ({where}: {problem_in_words(problem)}): is it a coordinator, and of which version?"
            ) from error


def segment(name: str) -> str:
    """A name as one part of a path, whatever characters it has. Raises `Refused` for what would be none, or several."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise Refused(404, "not_found", f"nothing is called {name!r}: a name has {NAME_CHARACTERS}", {})
    return quote(name, safe="")


def _plain(body: BaseModel | None) -> object:
    """As JSON has it: a number that is none becomes null, and the coordinator says which field is wrong.

    What was not set is not sent: a coordinator that is one version older does not know the newest settings.
    """
    return None if body is None else json.loads(body.model_dump_json(warnings=False, exclude_unset=True))
