"""The agent's side of a site cache: asks it for shards, and the coordinator wherever it does not serve.

Nothing that it says is believed: its bytes are held against the digest, its refusals are asked of the coordinator once more.
"""

import contextlib
import logging
import time
from collections.abc import Iterator

import httpx

from fedcybgd.agent.answers import identity_of
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import AgentError, Unreachable, VisitFailed
from fedcybgd.agent.heads import bound_heads
from fedcybgd.shared.contract.manifests import BlobRef, FileRef
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from fedcybgd.shared.contract.words import API, SITE_CACHE
from fedcybgd.shared.host.authorities import believed
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedagent.site")
TIMEOUT = httpx.Timeout(30, connect=3)
ONCE_S, FAILED_S, LONGEST_S, LIED_S = 1.0, 60.0, 900.0, 3600.0
"""For so long all is asked of the coordinator: after a refusal, after a failure, after one failure after the other, after wrong bytes."""
MOST_CUTS = 3
"""Transfers that were cut one after another, though something came, before it rests"""
LOOK_S, LEAST_BYTES_PER_S = 20.0, 65_536
"""What brings less in so long a time is slower than a coordinator that is worth waiting for."""
NOBODY = "asg_0000000000000000", "0" * 64
"""An assignment and a blob that no coordinator has"""


class SiteCacheFailed(Unreachable):
    """It did not serve. The coordinator has the bytes too."""


class SiteCacheRefused(SiteCacheFailed):
    """It says that the coordinator refuses: the coordinator is asked."""


class SiteCache:
    """To be used by one thread. Without a `url` it is the coordinator alone."""

    def __init__(self, client: Client, url: str | None = None) -> None:
        self._client = client
        self.bytes_fetched = 0
        """Body bytes that it sent since the start"""
        self.trouble: str | None = None
        """What was wrong with it, until it has served again"""
        self.url: str | None = None
        self._http: httpx.Client | None = None
        self._rests_until, self._rest_s, self._cuts = 0.0, FAILED_S, 0
        self._asked, self._came = False, 0
        self._rarely = Rarely()
        self.use(url)

    def use(self, url: str | None) -> None:
        """Ask this one from now on."""
        if url != self.url:
            self.close()
            self.url, self._http = url, None if url is None else _connect(url)
            self._rests_until, self._rest_s, self._cuts, self.trouble = 0.0, FAILED_S, 0, None

    @property
    def is_asked(self) -> bool:
        """Whether the next shard is asked of it."""
        return self._http is not None and self._client.signer is not None and time.monotonic() >= self._rests_until

    @contextlib.contextmanager
    def shard(self, assignment_id: str, ref: FileRef | BlobRef, offset: int) -> Iterator[httpx.Response]:
        """Stream from `offset` on as `Client.shard` does: from the cache while it serves, else from the coordinator."""
        self._asked, self._came = self.is_asked, 0
        if not self._asked:
            with self._client.shard(assignment_id, ref.digest, offset) as answer:
                yield answer
            return
        try:
            with self._get(assignment_id, ref.digest, {"Range": f"bytes={offset}-"} if offset else {}) as answer:
                self._judge(answer, ref.size, offset)
                if answer.headers.get(SITE_CACHE) != "asked":
                    self._tell(assignment_id, ref.digest)
                yield httpx.Response(answer.status_code, headers=answer.headers, stream=_Watched(self, answer))
        except httpx.HTTPError as error:
            raise SiteCacheFailed(f"the site cache at {self.url}: {one_line(str(error))[:200] or type(error).__name__}") from error
        self._cuts, self._rest_s, self.trouble = 0, FAILED_S, None

    def came(self, amount: int) -> None:
        self._came += amount
        self.bytes_fetched += amount

    def heard(self, error: AgentError) -> bool:
        """To be told why a fetch failed; whether that was the cache, so that it is worth asking again at once."""
        if not self._asked:
            return False
        self._asked = False
        if isinstance(error, SiteCacheRefused):
            self._rests_until = time.monotonic() + ONCE_S
        elif isinstance(error, VisitFailed):
            self._rest(LIED_S, "its bytes have another digest")
        elif self._came and self._cuts < MOST_CUTS:
            self._cuts += 1
        else:
            self._rest(self._rest_s, error.message)
            self._rest_s = min(2 * self._rest_s, LONGEST_S)
        return True

    def probe(self) -> str | None:
        """What is wrong with it; None where a request of this agent comes through to its coordinator."""
        if self._http is None:
            return None
        if self._client.signer is None:
            return "this agent shows a secret in place of signing, which it does to nobody but its coordinator; `fedagent rotate-key` makes a key"
        try:
            with self._get(*NOBODY, {}) as answer:
                said, status = identity_of(answer.headers), answer.status_code
        except httpx.HTTPError as error:
            return one_line(str(error))[:200] or type(error).__name__
        if said != self._client.coordinator:
            return f"it answers {status} as {'another coordinator, ' + said if said else 'no coordinator does'}: does it serve this one?"
        return (
            None
            if status == 404
            else f"the coordinator answers {status} to what comes through it: does it pass the path on, and Signature, as they are?"
        )

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def _get(self, assignment_id: str, digest: str, headers: dict[str, str]) -> contextlib.AbstractContextManager[httpx.Response]:
        assert self._http is not None
        assert self._client.signer is not None
        path = f"{API}/assignments/{assignment_id}/shards/{digest}"
        # Once: a refusal that tells another time is believed of the coordinator alone.
        return self._http.stream("GET", path, headers=headers, auth=self._client.signer.once)

    def _judge(self, answer: httpx.Response, size: int, offset: int) -> None:
        """Raises `SiteCacheFailed` for what cannot be the shard, before a byte of it is written down."""
        if 400 <= answer.status_code < 500 and identity_of(answer.headers) == self._client.coordinator:
            raise SiteCacheRefused(f"the site cache at {self.url} says that the coordinator answers {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise SiteCacheFailed(f"the site cache at {self.url} answers {answer.status_code}")
        said, awaited = answer.headers.get("content-length"), size - (offset if answer.status_code == 206 else 0)
        if said != str(awaited) or answer.headers.get("content-encoding", "identity") != "identity":
            raise SiteCacheFailed(f"the site cache at {self.url} announces {one_line(str(said))[:20]} bytes in place of {awaited}")

    def _tell(self, assignment_id: str, digest: str) -> None:
        """Any HTTP cache may have asked nobody: the coordinator hears who gets a shard before the agent has a byte of it."""
        asked, self._asked = self._asked, False  # what it says now is not the cache's
        with self._client.shard(assignment_id, digest, 0, {"If-None-Match": f'"{digest}"'}):
            pass
        self._asked = asked

    def _rest(self, seconds: float, why: str) -> None:
        self._rests_until, self._cuts, self.trouble = time.monotonic() + seconds, 0, why
        if self._rarely.is_due():
            log.warning("the site cache at %s is not asked for %.0f s: %s; the coordinator is", self.url, seconds, why)


class _Watched(httpx.SyncByteStream):
    """A body that is counted, and ended where it drips."""

    def __init__(self, site: SiteCache, answer: httpx.Response) -> None:
        self._site, self._answer = site, answer

    def __iter__(self) -> Iterator[bytes]:
        since, came = time.monotonic(), 0
        for chunk in self._answer.iter_raw():
            self._site.came(len(chunk))
            came += len(chunk)
            if (now := time.monotonic()) - since >= LOOK_S:
                if came < LEAST_BYTES_PER_S * (now - since):
                    raise httpx.ReadTimeout(f"it brings {came / (now - since):,.0f} bytes a second")
                since, came = now, 0
            yield chunk


def _connect(url: str) -> httpx.Client:
    """It is of the site: no proxy leads there."""
    client = httpx.Client(
        base_url=url.rstrip("/"), headers={"Accept-Encoding": "identity", VERSION: str(SPOKEN)}, timeout=TIMEOUT, trust_env=False,
        follow_redirects=False, verify=believed(httpx.create_ssl_context),
    )  # fmt: skip
    return bound_heads(client)
