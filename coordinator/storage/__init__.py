"""Where blobs are kept: a directory by default."""

from pathlib import Path

from coordinator.storage.base import BlobCorrupt, BlobMissing, BlobStore, BlobWriter, StoreFull
from coordinator.storage.local import LocalBlobStore

__all__ = ["BlobCorrupt", "BlobMissing", "BlobStore", "BlobWriter", "StoreFull", "open_store"]


def open_store(root: Path) -> BlobStore:
    return LocalBlobStore(root)
