"""The shards of a site cache: each is fetched once however many ask for it, and who asks meanwhile reads along.

Who may read is asked of the coordinator for each reader alone. The last bytes of a shard are held back until its digest is right.
"""

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.errors import AgentError, Unreachable, VisitFailed
from fedcybgd.agent.site.upstream import PassedOn, Upstream
from fedcybgd.shared.host.counters import Counters

log = logging.getLogger("fedagent.site")
HELD_BACK = 1 << 16
"""Bytes of a shard that nobody gets before its digest was looked at"""
ANSWERED_S, LOOK_S = 60.0, 0.02


class NoRoom(Exception):
    """Beside the shards that are being read there is no room for this one."""


class ShardCut(Exception):
    """What is read here does not go on."""


class _Fetch:
    """A shard on its way, from the moment that somebody asks the coordinator for it."""

    def __init__(self) -> None:
        self.answered, self.over = threading.Event(), threading.Event()
        self.flows = self.whole = False
        self.size = 0


class Reading:
    """A shard as one agent reads it, whole or while it comes."""

    def __init__(self, cache: ShardCache, digest: str, fetch: _Fetch) -> None:
        self._cache, self._digest, self._fetch = cache, digest, fetch
        self.size = fetch.size

    def spans(self, offset: int) -> Iterator[tuple[BinaryIO, int, int]]:
        """From `offset` on: a file, and from where to where in it there is something to send. Raises `ShardCut` where no more comes."""
        with self._open() as file:
            while offset < self.size:
                over = self._fetch.over.is_set()
                whole = over and self._fetch.whole
                found = os.fstat(file.fileno())
                if not whole and (over or not found.st_nlink):
                    raise ShardCut
                have = self.size if whole else min(found.st_size, self.size - HELD_BACK)
                if offset < have:
                    yield file, offset, have
                    offset = have
                elif not whole:
                    self._fetch.over.wait(LOOK_S)

    def _open(self) -> BinaryIO:
        while True:
            over = self._fetch.over.is_set()
            for path in (self._cache.part(self._digest), self._cache.path(self._digest)):
                with contextlib.suppress(FileNotFoundError):
                    return path.open("rb")
            if over:
                raise ShardCut
            self._fetch.over.wait(LOOK_S)


class SiteShards:
    """May be used by several threads."""

    def __init__(self, cache: ShardCache, upstream: Upstream, counters: Counters) -> None:
        self._cache, self._upstream, self._counters = cache, upstream, counters
        self._lock = threading.Lock()
        self._fetches: dict[str, _Fetch] = {}
        self._readers, self._sizes = Counter[str](), dict[str, int]()

    @contextlib.contextmanager
    def reading(self, asked: PassedOn) -> Iterator[Reading]:
        """The shard, for as long as it is read here: nothing drops it meanwhile.

        Raises `Refused` where the coordinator does, `Unreachable` where it is not to be had, `NoRoom`, and `OSError`.
        """
        digest = asked.digest
        with self._lock:
            self._readers[digest] += 1
        try:
            yield Reading(self._cache, digest, self._fetch(asked))
        finally:
            with self._lock:
                self._readers[digest] -= 1
                if not self._readers[digest]:
                    del self._readers[digest]

    def _fetch(self, asked: PassedOn) -> _Fetch:
        while True:
            with self._lock:
                fetch = self._fetches.get(asked.digest)
                if leads := fetch is None:
                    fetch = self._fetches[asked.digest] = _Fetch()
            if leads:
                return self._lead(asked, fetch)
            if not fetch.answered.wait(ANSWERED_S):
                raise Unreachable("the coordinator takes its time")
            if fetch.flows:
                self._upstream.allow(asked)
                self._counters.add("fedagent_cache_requests_total", 1, ("shared",))
                return fetch

    def _lead(self, asked: PassedOn, fetch: _Fetch) -> _Fetch:
        """Be the first who asks for a shard: it is here, or is fetched."""
        try:
            if (path := self._cache.use(asked.digest)) is not None:
                fetch.size = path.stat().st_size
                self._hold(asked.digest, fetch.size)
                fetch.flows = fetch.whole = True
                self._end(asked.digest, fetch)
                self._upstream.allow(asked)
                self._counters.add("fedagent_cache_requests_total", 1, ("here",))
            else:
                self._begin(asked, fetch)
                self._counters.add("fedagent_cache_requests_total", 1, ("fetched",))
        except BaseException:
            self._end(asked.digest, fetch)
            raise
        return fetch

    def _begin(self, asked: PassedOn, fetch: _Fetch) -> None:
        with contextlib.ExitStack() as stack:
            answer, fetch.size = stack.enter_context(self._upstream.shard(asked, _resumed(self._cache.part(asked.digest))))
            self._hold(asked.digest, fetch.size)
            fetch.flows = True
            threading.Thread(target=self._fill, args=(asked.digest, fetch, answer, stack.pop_all()), daemon=True).start()
            fetch.answered.set()

    def _fill(self, digest: str, fetch: _Fetch, answer: httpx.Response, stack: contextlib.ExitStack) -> None:
        began, answers = time.monotonic(), [answer]

        @contextlib.contextmanager
        def once(_: int) -> Iterator[httpx.Response]:
            if not answers:
                raise Unreachable("what had arrived before was damaged; it is fetched anew when it is asked for again")
            yield answers.pop()

        try:
            with stack:
                self._cache.get(digest, fetch.size, once)
            fetch.whole = True
            self._counters.add("fedagent_cache_bytes_total", fetch.size, ("fetched",))
            log.info("fetched %s: %.1f MB in %.1f s", digest[:12], fetch.size / 1e6, time.monotonic() - began)
        except (AgentError, OSError) as error:
            log.warning("%s was not fetched: %s", digest[:12], error)
        except Exception:
            log.exception("%s was not fetched", digest[:12])
        finally:
            self._end(digest, fetch)

    def _hold(self, digest: str, size: int) -> None:
        """Make room for a shard beside those that are read or fetched. Raises `NoRoom`."""
        with self._lock:
            self._sizes[digest] = size
            busy = {name: self._sizes[name] for name in {*self._readers, *self._fetches} if name in self._sizes}
            self._sizes = dict(busy)
            try:
                self._cache.pin(busy.items())
            except VisitFailed as error:
                self._sizes.pop(digest)
                raise NoRoom from error
            for name, needed in busy.items():
                self._cache.make_room(name, needed)

    def _end(self, digest: str, fetch: _Fetch) -> None:
        with self._lock:
            if self._fetches.get(digest) is fetch:
                del self._fetches[digest]
        fetch.over.set()
        fetch.answered.set()


def _resumed(part: Path) -> int:
    """How much of a shard has arrived. Its last byte is asked for again: the answer says then how many there are in all."""
    try:
        have = max(0, part.stat().st_size - 1)
        os.truncate(part, have)
        return have
    except FileNotFoundError:
        return 0
