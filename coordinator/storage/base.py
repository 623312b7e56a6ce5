"""What a store of immutable blobs promises; `tests/contract` runs one test class over every implementation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from fedcybgd.coordinator.errors import CoordinatorError


class BlobMissing(CoordinatorError):
    code = "blob_missing"
    status = 404


class BlobDamaged(CoordinatorError):
    """The bytes of a blob are not those of its digest any more; they were set aside, so that others can take their place."""

    code = "blob_damaged"
    status = 503


class StoreFull(CoordinatorError):
    code = "disk_full"
    status = 507


class NoRoomYet(StoreFull):
    """Nothing was begun that does not fit as things are; the disk has room for others."""


class DiskTooSmall(CoordinatorError):
    """It would not fit if nothing else lay there."""

    code = "disk_too_small"
    status = 507


class BlobCorrupt(CoordinatorError):
    code = "digest_mismatch"
    status = 422


class BlobWriter(Protocol):
    """Writes one blob; it is in the store once the `with` block ends without an error, and then `digest` is its name."""

    digest: str
    size: int

    def write(self, data: bytes | memoryview) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class BlobStore(Protocol):
    """As the web process and the services see it: wherever the bytes are, nobody is promised a local file."""

    def has(self, digest: str) -> bool: ...

    def size(self, digest: str) -> int:
        """Bytes of the blob; raises `BlobMissing`."""
        ...

    def check(self, digest: str) -> None:
        """Raises `BlobMissing` or `BlobDamaged` unless the blob is there and its bytes are those of its digest."""
        ...

    def open(self, digest: str) -> BinaryIO:
        """The blob's bytes, checked, from any place on (`seek`), for as long as it is not closed; raises as `check`."""
        ...

    def link(self, digest: str, seconds: float) -> str | None:
        """An address from which anybody may fetch the blob for so long, with ranges; raises `BlobMissing`. None: it is to be read from here."""
        ...

    def writer(self) -> BlobWriter:
        """Raises `StoreFull`, here, from `write` or at the end, when the bytes do not fit; nothing is left behind then."""
        ...

    def stored(self) -> Iterator[tuple[str, float]]:
        """Digest and time (seconds since the epoch) of every blob, in no order. The time is compared, by `delete` and by whoever
        judges what may go: it is another one when the blob was written or touched again.
        """
        ...

    def delete(self, digest: str, written: float | None = None) -> bool:
        """Delete the blob, or only the one written at that time (as `stored` tells it); whether there was one."""
        ...

    def touch(self, digest: str) -> None:
        """Have it count as just written: it is about to be needed again. Raises `BlobMissing`."""
        ...

    def hold(self) -> AbstractContextManager[None]:
        """Have nothing deleted by `tidy` meanwhile, in whatever process; it ends with this process at the latest."""
        ...

    def is_held(self) -> bool: ...

    def sweep(self) -> None:
        """Delete what processes that were killed left behind."""
        ...


class EngineStore(BlobStore, Protocol):
    """As the engine sees it, which maps files."""

    def localised(self, digest: str) -> AbstractContextManager[Path]:
        """A file on this machine with the blob's bytes, checked, to be read only; raises as `check`.

        It may be gone after the block; what was mapped of it stays mapped.
        """
        ...

    def adopt(self, path: Path, digest: str) -> None:
        """Move the local file at `path` in, verified; on `BlobCorrupt` (its bytes are not `digest`) or `StoreFull` it stays there."""
        ...

    def check_room(self, size: int) -> None:
        """Raises `NoRoomYet` where so many bytes more are known not to fit at present, and `DiskTooSmall` where they never would."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty directory, where a blob can be moved from, for files that are of no use afterwards."""
        ...
