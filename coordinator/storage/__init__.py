"""Where blobs are kept: a directory by default."""

from pathlib import Path

from fedcybgd.coordinator.storage.base import BlobCorrupt, BlobDamaged, BlobMissing, BlobStore, BlobWriter, EngineStore, StoreFull
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.coordinator.storage.local_uploads import LocalUploads
from fedcybgd.coordinator.storage.overlay import OverlayStore
from fedcybgd.coordinator.storage.uploads import Uploads

__all__ = [
    "BlobCorrupt",
    "BlobDamaged",
    "BlobMissing",
    "BlobStore",
    "BlobWriter",
    "EngineStore",
    "OverlayStore",
    "StoreFull",
    "Uploads",
    "open_store",
    "open_uploads",
]


def open_store(root: Path) -> LocalBlobStore:
    return LocalBlobStore(root)


def open_uploads(folder: Path, store: LocalBlobStore) -> LocalUploads:
    """Uploads that become blobs of `store`."""
    return LocalUploads(folder, store)
