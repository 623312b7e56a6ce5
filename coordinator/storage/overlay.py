"""Reads blobs from where they are left as they are; what is made of them lies aside."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedcybgd.coordinator.storage.base import BlobDamaged, BlobMissing, EngineStore
from fedcybgd.coordinator.storage.local import VERIFIER, LocalBlobStore
from fedcybgd.shared.contract.digests import digest_of_file


class OverlayStore(LocalBlobStore):
    """Unlike the store of a coordinator it moves nothing that is damaged: whoever looks a second time finds the same."""

    def __init__(self, aside: Path, below: Sequence[Path]) -> None:
        super().__init__(aside)
        self._below = below

    def has(self, digest: str) -> bool:
        return self._find(digest) is not None

    def size(self, digest: str) -> int:
        return self._found(digest).stat().st_size

    def path(self, digest: str) -> Path:
        place = self._found(digest)
        try:
            whole = VERIFIER.is_whole(place, digest) or digest_of_file(place) == digest
        except OSError as error:
            raise BlobDamaged(f"{place} cannot be read: {error}", digest=digest) from error
        if not whole:
            raise BlobDamaged(f"{place}: its bytes are others than were stored", digest=digest)
        return place

    def _found(self, digest: str) -> Path:
        if (place := self._find(digest)) is None:
            raise BlobMissing(f"no blob {digest} in {' or '.join(map(str, self._below))}", digest=digest)
        return place

    def _find(self, digest: str) -> Path | None:
        """As a store keeps it, or by its digest alone."""
        places = [self._place(digest), *(place for root in self._below for place in (root / digest[:2] / digest, root / digest))]
        return next((place for place in places if place.is_file()), None)


class StoreBeyond(LocalBlobStore):
    """The same over another store; what that finds damaged it sets aside as ever."""

    def __init__(self, aside: Path, below: EngineStore) -> None:
        super().__init__(aside)
        self._below = below

    def has(self, digest: str) -> bool:
        return super().has(digest) or self._below.has(digest)

    def size(self, digest: str) -> int:
        return super().size(digest) if super().has(digest) else self._below.size(digest)

    def check(self, digest: str) -> None:
        return super().check(digest) if super().has(digest) else self._below.check(digest)

    def open(self, digest: str) -> BinaryIO:
        return super().open(digest) if super().has(digest) else self._below.open(digest)

    @contextmanager
    def localised(self, digest: str) -> Iterator[Path]:
        with super().localised(digest) if super().has(digest) else self._below.localised(digest) as path:
            yield path
