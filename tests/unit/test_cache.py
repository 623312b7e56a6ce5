"""The cache trusts no byte that it has not verified, goes on where a transfer was cut, and stays within its limit."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import fedcybgd.agent.cache
from fedcybgd.agent import assignment_run
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.errors import Unreachable, VisitFailed
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import BlobRef

DATA = bytes(range(256)) * 40
DIGEST = digest_of(DATA)
SIZE = len(DATA)


class Coordinator:
    """Answers like one, over httpx's own transport: Range as a file server does, and cuts where a test wants them."""

    def __init__(self, data: bytes = DATA, ranges: bool = True, cut_at: int | None = None) -> None:
        self.data, self.ranges, self.cut_at = data, ranges, cut_at
        self.asked: list[str | None] = []
        self._http = httpx.Client(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start >= len(self.data) > 0:
            return httpx.Response(416)
        return httpx.Response(206 if start else 200, stream=Body(self.data[start:], self.cut_at))

    @contextlib.contextmanager
    def fetch(self, offset: int) -> Iterator[httpx.Response]:
        """As `agent.client.Client.shard` does."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._http.stream("GET", "http://c/shard", headers=headers) as answer:
                yield answer
        except httpx.HTTPError as error:
            raise Unreachable("cut") from error


class Body(httpx.SyncByteStream):
    def __init__(self, data: bytes, cut_at: int | None) -> None:
        self._data, self._cut_at = data, cut_at

    def __iter__(self) -> Iterator[bytes]:
        yield self._data[: self._cut_at]
        if self._cut_at is not None:
            raise httpx.ReadError("the wire was cut")


@pytest.mark.parametrize("long_s", [0.0, 60.0])
def test_a_transfer_that_is_cut_by_its_time_goes_on_at_once_where_the_line_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_s: float
) -> None:
    monkeypatch.setattr(assignment_run, "LONG_S", long_s)
    coordinator = Coordinator(cut_at=3000)
    site: Any = SimpleNamespace(heard=lambda _: False, shard=lambda _assignment, _ref, offset: coordinator.fetch(offset))
    tools: Any = SimpleNamespace(cache=ShardCache(tmp_path, 10**6), site=site)
    with pytest.raises(Unreachable) if long_s else contextlib.nullcontext():
        path = assignment_run.fetch_blob(tools, SimpleNamespace(assignment_id="asg"), BlobRef(digest=DIGEST, size=SIZE))  # type: ignore[arg-type]
        assert path.read_bytes() == DATA


def never(offset: int) -> Any:
    raise AssertionError("nothing had to be fetched")


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10 * SIZE)


def files(tmp_path: Path) -> list[str]:
    return sorted(f.name for f in (tmp_path / "cache").iterdir())


def test_a_shard_is_fetched_once(cache: ShardCache, tmp_path: Path) -> None:
    coordinator = Coordinator()
    path = cache.get(DIGEST, SIZE, coordinator.fetch)
    assert path.read_bytes() == DATA
    assert cache.get(DIGEST, SIZE, never) == path
    assert coordinator.asked == [None]
    assert files(tmp_path) == [DIGEST]
    assert cache.bytes_fetched == SIZE
    assert ShardCache(tmp_path / "cache", 10 * SIZE).get(DIGEST, SIZE, never) == path, "it survives a restart"


def test_an_empty_file_is_had_without_asking(cache: ShardCache) -> None:
    assert cache.get(digest_of(b""), 0, never).read_bytes() == b""


def test_a_cut_transfer_keeps_what_arrived_and_goes_on_there(cache: ShardCache, tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        cache.get(DIGEST, SIZE, Coordinator(cut_at=1000).fetch)
    assert files(tmp_path) == [f"{DIGEST}.part"]
    again = ShardCache(tmp_path / "cache", 10 * SIZE)  # the process died in between
    coordinator = Coordinator()
    assert again.get(DIGEST, SIZE, coordinator.fetch).read_bytes() == DATA
    assert coordinator.asked == ["bytes=1000-"]
    assert again.bytes_fetched == SIZE - 1000
    assert files(tmp_path) == [DIGEST]


def test_a_coordinator_that_starts_over_is_followed(cache: ShardCache, tmp_path: Path) -> None:
    (tmp_path / "cache" / f"{DIGEST}.part").write_bytes(b"x" * 1000)
    coordinator = Coordinator(ranges=False)
    assert cache.get(DIGEST, SIZE, coordinator.fetch).read_bytes() == DATA
    assert coordinator.asked == ["bytes=1000-"]


def test_a_range_that_the_coordinator_does_not_have_starts_over(cache: ShardCache, tmp_path: Path) -> None:
    (tmp_path / "cache" / f"{DIGEST}.part").write_bytes(DATA[:1000])
    with pytest.raises(Unreachable, match="starting over"):
        cache.get(DIGEST, SIZE, Coordinator(DATA[:500]).fetch)
    assert files(tmp_path) == []
    assert cache.get(DIGEST, SIZE, Coordinator().fetch).read_bytes() == DATA


def test_an_answer_that_ends_early_without_an_error_is_a_cut(cache: ShardCache, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="ended early"):
        cache.get(DIGEST, SIZE, Coordinator(DATA[:700]).fetch)
    assert (tmp_path / "cache" / f"{DIGEST}.part").stat().st_size == 700


def test_wrong_bytes_are_thrown_away(cache: ShardCache, tmp_path: Path) -> None:
    with pytest.raises(VisitFailed) as failed:
        cache.get(DIGEST, SIZE, Coordinator(DATA[:-1] + b"\0").fetch)
    assert failed.value.reason == "shard_corrupt"
    assert files(tmp_path) == []
    assert cache.get(DIGEST, SIZE, Coordinator().fetch).read_bytes() == DATA


@pytest.mark.parametrize("left", [b"x" * 1000, DATA[:999] + b"x", b"\0" * SIZE], ids=["all wrong", "one byte", "zeros to the end"])
def test_a_beginning_that_was_spoilt_here_is_thrown_away_and_blamed_on_nobody(cache: ShardCache, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "cache" / f"{DIGEST}.part").write_bytes(left)
    coordinator = Coordinator()
    assert cache.get(DIGEST, SIZE, coordinator.fetch).read_bytes() == DATA
    assert coordinator.asked == [f"bytes={len(left)}-", None][len(left) == SIZE :], "what had arrived, and then all"
    assert files(tmp_path) == [DIGEST]


def test_a_coordinator_that_sends_wrong_bytes_twice_is_not_asked_a_third_time(cache: ShardCache, tmp_path: Path) -> None:
    (tmp_path / "cache" / f"{DIGEST}.part").write_bytes(b"x" * 1000)
    wrong = Coordinator(DATA[:-1] + b"\0")
    with pytest.raises(VisitFailed) as failed:
        cache.get(DIGEST, SIZE, wrong.fetch)
    assert failed.value.reason == "shard_corrupt"
    assert len(wrong.asked) == 2
    assert files(tmp_path) == []


def test_more_bytes_than_announced_are_wrong_bytes(cache: ShardCache, tmp_path: Path) -> None:
    with pytest.raises(VisitFailed) as failed:
        cache.get(DIGEST, SIZE, Coordinator(DATA + b"more").fetch)
    assert failed.value.reason == "shard_corrupt"
    assert files(tmp_path) == []


@pytest.mark.parametrize("left", [b"", DATA[:-1], DATA + b"x"], ids=["zero bytes", "short", "long"])
def test_a_file_of_another_size_is_not_trusted(cache: ShardCache, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "cache" / DIGEST).write_bytes(left)  # what a power cut can leave behind
    assert cache.get(DIGEST, SIZE, Coordinator().fetch).read_bytes() == DATA


@pytest.mark.parametrize("left", [DATA, b""], ids=["whole", "zero bytes"])
def test_a_part_is_verified_before_it_is_used(cache: ShardCache, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "cache" / f"{DIGEST}.part").write_bytes(left)
    assert cache.get(DIGEST, SIZE, never if left else Coordinator().fetch).read_bytes() == DATA


def test_a_part_that_is_too_long_is_dropped(cache: ShardCache, tmp_path: Path) -> None:
    (tmp_path / "cache" / f"{DIGEST}.part").write_bytes(DATA + b"more")
    coordinator = Coordinator()
    assert cache.get(DIGEST, SIZE, coordinator.fetch).read_bytes() == DATA
    assert coordinator.asked == [None]


def shard(number: int) -> tuple[str, bytes]:
    data = bytes([number]) * 1000
    return digest_of(data), data


def fill(cache: ShardCache, tmp_path: Path, numbers: range) -> list[str]:
    """Fetch shards of 1,000 bytes one after another, each used one second after the one before."""
    digests = []
    for number in numbers:
        digest, data = shard(number)
        path = cache.get(digest, len(data), Coordinator(data).fetch)
        os.utime(path, (1_000_000 + number, 1_000_000 + number))
        digests.append(digest)
    return digests


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3000)
    first, second, third = fill(cache, tmp_path, range(3))
    cache.get(first, 1000, never)  # used again just now
    digest, data = shard(9)
    cache.get(digest, 1000, Coordinator(data).fetch)
    assert files(tmp_path) == sorted([first, third, digest])
    assert second not in files(tmp_path)
    assert cache.size() == 3000


def test_the_size_stays_within_the_limit(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3500)
    for number in range(10):
        fill(cache, tmp_path, range(number, number + 1))
        assert cache.size() <= 3500
    assert cache.size() == 3000


def test_shards_of_the_visit_at_hand_are_never_dropped(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3000)
    old, older, other = fill(cache, tmp_path, range(3))
    digest, data = shard(9)
    cache.pin([(old, 1000), (older, 1000), (digest, 1000)])
    cache.get(digest, 1000, Coordinator(data).fetch)
    assert files(tmp_path) == sorted([old, older, digest])
    assert other not in files(tmp_path)


def test_a_part_of_the_visit_at_hand_is_not_dropped_and_another_one_is(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3000)
    mine, foreign = shard(1)[0], shard(2)[0]
    for digest in (mine, foreign):
        (tmp_path / "cache" / f"{digest}.part").write_bytes(b"x" * 900)
        os.utime(tmp_path / "cache" / f"{digest}.part", (1, 1))
    digest, data = shard(9)
    cache.pin([(mine, 1000), (digest, 1000)])
    fill(cache, tmp_path, range(3, 4))
    cache.get(digest, 1000, Coordinator(data).fetch)
    assert f"{mine}.part" in files(tmp_path)
    assert f"{foreign}.part" not in files(tmp_path)


def test_the_next_visit_lets_the_pinned_go(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2000)
    old = fill(cache, tmp_path, range(2))
    cache.pin([(d, 1000) for d in old])
    digest, data = shard(9)
    cache.pin([(digest, 1000)])
    assert cache.bytes_fetched == 0
    cache.get(digest, 1000, Coordinator(data).fetch)
    assert files(tmp_path) == sorted([old[1], digest])


def test_what_arrived_of_a_shard_does_not_count_twice(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2000)
    [kept] = fill(cache, tmp_path, range(1))
    digest, data = shard(9)
    (tmp_path / "cache" / f"{digest}.part").write_bytes(data[:900])
    cache.get(digest, 1000, Coordinator(data).fetch)
    assert files(tmp_path) == sorted([kept, digest]), "2,000 bytes fit in 2,000"


def test_a_visit_that_does_not_fit_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1999)
    kept = fill(cache, tmp_path, range(1))
    with pytest.raises(VisitFailed, match=r"limits\.disk_gb") as failed:
        cache.pin([(shard(1)[0], 1000), (shard(2)[0], 1000)])
    assert failed.value.reason == "disk_limit"
    assert files(tmp_path) == kept


def test_what_lies_beside_the_shards_takes_their_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3500)
    kept = fill(cache, tmp_path, range(3))
    digest, data = shard(9)
    cache.pin([(digest, 1000)])
    assert cache.left == 2500
    cache.reserve(1500, "pixels")
    cache.get(digest, 1000, Coordinator(data).fetch)
    assert files(tmp_path) == sorted([kept[2], digest]), "with 1,500 beside them, two of 1,000 fit in 3,500"
    with pytest.raises(VisitFailed, match=r"this visit needs 3\.5 kB of shards, residuals and pixels") as failed:
        cache.reserve(1001, "pixels")
    assert failed.value.reason == "disk_limit"
    cache.pin([(digest, 1000)])
    assert cache.left == 2500, "until the next visit"


def test_a_shard_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    assert ShardCache(tmp_path / "cache", 1000).pin([(DIGEST, 1000), (DIGEST, 1000)]) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_reason_that_the_agent_reports(
    cache: ShardCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fedcybgd.agent.cache.os, "fsync", raises(OSError(number, os.strerror(number))))
    with pytest.raises(VisitFailed, match=r"disk of .* is full") as failed:
        cache.get(DIGEST, SIZE, Coordinator().fetch)
    assert failed.value.reason == "disk_full"
    assert DIGEST not in files(tmp_path)


def test_another_error_of_the_disk_is_not_called_full(cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedcybgd.agent.cache.os, "fsync", raises(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        cache.get(DIGEST, SIZE, Coordinator().fetch)


def raises(error: Exception) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function
