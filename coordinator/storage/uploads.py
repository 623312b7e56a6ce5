"""What has arrived of blobs that agents send, until they are whole; `tests/contract` runs one test class over every implementation."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol


class NothingArrived(Exception):
    """There are no bytes under this key (any more)."""


class Elsewhere(Exception):
    """These bytes do not follow on what arrived; the number says where that ends."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"{offset} bytes have arrived")
        self.offset = offset


class BeingChecked(Exception):
    """Another request has taken the upload to check it, and is not done with it."""


class UploadKey(NamedTuple):
    """Whose bytes for what; each of letters, digits and `_`."""

    place: str
    """what they are for: of a place there is one upload at a time"""
    owner: str
    digest: str


class TakenUpload(Protocol):
    """An upload that nobody can add to any more."""

    def open(self) -> BinaryIO: ...

    def keep(self) -> None:
        """Make it a blob of the store, and remember that. Raises as `EngineStore.adopt`."""
        ...

    def drop(self) -> None: ...


class Uploads(Protocol):
    """An upload begins with its first byte, and survives the process. What is done to those of one place happens one after another,
    whatever process does it.
    """

    @property
    def best_piece(self) -> int:
        """Bytes that are best appended at a time, where there are so many."""
        ...

    def offset(self, key: UploadKey) -> int:
        """Bytes that have arrived, also of what is being checked; 0 of what is unknown, or kept."""
        ...

    def is_kept(self, key: UploadKey) -> bool:
        """Whether all of it arrived under this key and became a blob."""
        ...

    def append(self, key: UploadKey, at: int, data: bytes, may: Callable[[], None]) -> None:
        """Write `data` from byte `at` on; the first byte discards whatever else the place had.

        `may` raises for what must not be written, and nothing is changed. While it looks nobody else does anything to the place: whoever
        has the place next writes after these bytes, or they are not written.

        `at` is where the upload ends, or before: a repeat overtakes a request that still hangs, and brings the same bytes for the same
        place. Raises `Elsewhere` beyond the end, and of what is being checked. On `StoreFull` what arrived before is kept.
        """
        ...

    def take(self, key: UploadKey) -> AbstractContextManager[TakenUpload]:
        """Move it away from whoever adds to it. What is neither kept nor dropped is put back, also when this process dies.

        Waits while another has it; raises `NothingArrived`, or `BeingChecked` after some time.
        """
        ...

    def discard(self, key: UploadKey) -> None:
        """All that is known of it, and of nobody else's at its place."""
        ...

    def keys(self) -> Collection[UploadKey]: ...

    def sweep(self, older_than_s: float) -> None:
        """Discard what nobody has added to for so long."""
        ...
