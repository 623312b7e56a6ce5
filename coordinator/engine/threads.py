"""Several threads at one job: torch, zstandard, hashes and files let go of the interpreter while they work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fedcybgd.shared.host import machine

T = TypeVar("T")
R = TypeVar("R")
MOST = 8
"""Threads of a job: each has a few MB of its own."""
AHEAD = 4
"""Items that are made before they are asked for."""


class _Allowed:
    cores = MOST


def allow(cores: int) -> None:
    """From now on no more than these in this process, where others have the rest of the machine."""
    _Allowed.cores = min(MOST, cores)


def cores() -> int:
    """That this process may use, also within the limits of a container, and no more than `MOST`."""
    return min(_Allowed.cores, machine.cores())


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `function` makes of each item, in their order: by as many threads as there are cores, and as many results ahead."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(most := cores()) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


def at_once(functions: Sequence[Callable[[], R]]) -> list[R]:
    """What they give, in their order."""
    return list(in_order(lambda function: function(), functions))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, made by another thread, a few before they are asked for."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(AHEAD))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            for left in waiting:
                left.cancel()
