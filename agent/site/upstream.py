"""Asks the coordinator for a shard in the name of the agent who asks here: by the signature that it made for this one request.

The cache has no key of its own, and no address but the coordinator's is ever asked, besides where that sends to.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

from fedcybgd.agent.answers import body_of, identity_of
from fedcybgd.agent.connection import connect, why
from fedcybgd.agent.elsewhere import OtherHosts, Rest
from fedcybgd.agent.errors import Unreachable
from fedcybgd.shared.contract.words import COORDINATOR
from fedcybgd.shared.host.bodies import BodyInvalid

MOST_REFUSAL = 64 << 10
"""Bytes of an answer that is no shard"""
_SPAN = re.compile(r"bytes [0-9]{1,16}-[0-9]{1,16}/([0-9]{1,16})")


@dataclass(frozen=True)
class PassedOn:
    """A request of an agent, as far as it is passed on."""

    assignment_id: str
    digest: str
    headers: dict[str, str]
    """its signature, and the version that it speaks"""


class Refused(Exception):
    """The coordinator has answered, and not with the shard. It is no error of the cache: who asked hears it."""

    def __init__(self, answer: httpx.Response, body: bytes = b"") -> None:
        super().__init__(f"the coordinator answers {answer.status_code}")
        self.status, self.body = answer.status_code, body
        self.headers = {COORDINATOR: said} if (said := identity_of(answer.headers)) is not None else {}


class Upstream:
    """May be used by several threads."""

    def __init__(self, url: str, storage: Sequence[str] | None = None) -> None:
        """`storage`: the only other hosts that may be asked where the coordinator sends there, as in policy.toml."""
        self.url = url
        self._http, self._storage, self._rest = connect(url, ""), storage, Rest()
        self.coordinator: dict[str, str] = {}
        """The heading by which the coordinator names itself, as it came last"""

    @contextlib.contextmanager
    def shard(self, asked: PassedOn, offset: int) -> Iterator[tuple[httpx.Response, int]]:
        """The answer from `offset` on, and the bytes of the whole shard. Raises `Refused`, and `Unreachable` where it is not to be had."""
        other = OtherHosts(self._storage, rest=self._rest)
        headers = asked.headers | other.headings() | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(other.close)
                answer = stack.enter_context(self._http.stream("GET", _path(asked), headers=headers))
                self._remember(answer)
                if answer.status_code == 307 and other.allows:
                    answer = stack.enter_context(other.fetch(answer.headers.get("location", ""), offset))
                if answer.status_code not in (200, 206):
                    raise Refused(answer, body_of(answer, MOST_REFUSAL))
                yield answer, _size(answer)
        except (httpx.HTTPError, BodyInvalid) as error:
            raise Unreachable(f"the transfer from {self.url} was cut: {why(self.url, error)}") from error

    def allow(self, asked: PassedOn) -> None:
        """Ask whether an agent may have a shard that is here; the coordinator writes down that it gets it. Raises as `shard` does."""
        try:
            with self._http.stream("GET", _path(asked), headers=asked.headers | {"If-None-Match": f'"{asked.digest}"'}) as answer:
                self._remember(answer)
                if answer.status_code not in (200, 304):
                    raise Refused(answer, body_of(answer, MOST_REFUSAL))
        except (httpx.HTTPError, BodyInvalid) as error:
            raise Unreachable(f"no coordinator answers at {self.url}: {why(self.url, error)}") from error

    def close(self) -> None:
        self._http.close()

    def _remember(self, answer: httpx.Response) -> None:
        if (said := identity_of(answer.headers)) is None:  # a proxy, a login page: nobody who can allow anything
            raise Unreachable(f"{self.url} answered {answer.status_code}: is it a coordinator?")
        self.coordinator = {COORDINATOR: said}


def _path(asked: PassedOn) -> str:
    return f"/assignments/{asked.assignment_id}/shards/{asked.digest}"


def _size(answer: httpx.Response) -> int:
    """Of the whole shard. Raises `Unreachable` where that is not said: it is not to be had in this way."""
    said = answer.headers.get("content-length", "")
    if answer.status_code == 206:
        span = _SPAN.fullmatch(answer.headers.get("content-range", ""))
        said = span[1] if span else ""
    if not re.fullmatch(r"[0-9]{1,16}", said) or answer.headers.get("content-encoding", "identity") != "identity":
        raise Unreachable("the answer does not say how many bytes the shard has")
    return int(said)
