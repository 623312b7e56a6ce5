"""Where blobs are kept: a directory by default."""

from pathlib import Path

from fedcybgd.coordinator.storage.base import BlobCorrupt, BlobDamaged, BlobMissing, BlobStore, BlobWriter, StoreFull
from fedcybgd.coordinator.storage.local import LocalBlobStore

__all__ = ["BlobCorrupt", "BlobDamaged", "BlobMissing", "BlobStore", "BlobWriter", "StoreFull", "open_store"]


def open_store(root: Path) -> BlobStore:
    return LocalBlobStore(root)
