"""What becomes of memory that is freed: the system has it back at once, but while a job asks for the same few MB again and again."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""glibc's malloc.h"""
TRIMMED_BYTES = 128 << 10
"""glibc's own: so much that is free at the end of what malloc has may stay there."""
RETURNED_BYTES = 1 << 18
"""Allocations from this size on are returned to the system when they are freed."""
KEPT_BYTES = 1 << 24
"""The same while memory is kept: some rows of a tensor are 4 MB in float32, and a whole tensor is no piece of anything."""
NOTHING_TRIMMED = 1 << 30


class _Libc:
    """None until `return_freed` has found glibc."""

    found: ctypes.CDLL | None = None


def return_freed() -> None:
    """Have malloc keep nothing large. Left to itself, glibc learns to keep up to 32 MB: streaming a model of 1.1B parameters layer by layer
    then held 1.3 GB of its own, where a layer and its activations are 0.4 GB. To be called before there are threads.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):  # only glibc has them
        _Libc.found = libc
        libc.mallopt(M_ARENA_MAX, 1)  # what threads have apart from each other `malloc_trim` does not return
        _set(libc, RETURNED_BYTES, TRIMMED_BYTES)


@contextmanager
def kept() -> Iterator[None]:
    """Have it keep what is freed, until the end. A piece whose memory is new costs more than to compute it: the system clears each of its pages.

    Nothing changes in a process that returns nothing.
    """
    if (libc := _Libc.found) is None:
        yield
        return
    _set(libc, KEPT_BYTES, NOTHING_TRIMMED)
    try:
        yield
    finally:
        _set(libc, RETURNED_BYTES, TRIMMED_BYTES)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, mapped_from: int, trimmed_from: int) -> None:
    libc.mallopt(M_MMAP_THRESHOLD, mapped_from)
    libc.mallopt(M_TRIM_THRESHOLD, trimmed_from)
