"""What has arrived of blobs that agents send, until they are whole; `tests/contract` runs one test class over every implementation."""

from typing import BinaryIO, Protocol


class NothingArrived(Exception):
    """There are no bytes under this key (any more)."""


class Uploads(Protocol):
    """Each upload has a key of letters, digits, `_` and `-`. It begins with its first byte, and survives the process."""

    def offset(self, key: str) -> int:
        """Bytes that have arrived; 0 of what is unknown."""
        ...

    def append(self, key: str, at: int, data: bytes) -> None:
        """Write `data` from byte `at` on. That is where the upload ends, or before: a repeat overtakes a request that still hangs,
        and writes the same bytes to the same place. On `StoreFull` what arrived before is kept.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """What has arrived, from any place on; raises `NothingArrived`."""
        ...

    def finish(self, key: str, digest: str) -> None:
        """Make it a blob of the store, and forget the upload. Raises `NothingArrived`, and as `EngineStore.adopt`."""
        ...

    def discard(self, key: str) -> None: ...

    def sweep(self, older_than_s: float) -> None:
        """Discard what nobody has added to for so long."""
        ...
