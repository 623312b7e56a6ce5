"""Where blobs are kept: a directory by default, or object storage."""

from pathlib import Path

from fedcybgd.coordinator.storage.base import (
    BlobCorrupt,
    BlobDamaged,
    BlobMissing,
    BlobStore,
    BlobWriter,
    DiskTooSmall,
    EngineStore,
    NoRoomYet,
    StoreFull,
)
from fedcybgd.coordinator.storage.bucket import StorageAway, StorageUnusable, label, reach
from fedcybgd.coordinator.storage.cache import BlobCache
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.coordinator.storage.local_uploads import LocalUploads
from fedcybgd.coordinator.storage.object import ObjectBlobStore
from fedcybgd.coordinator.storage.overlay import OverlayStore, StoreBeyond
from fedcybgd.coordinator.storage.place import Place
from fedcybgd.coordinator.storage.uploads import Uploads

__all__ = [
    "BlobCorrupt",
    "BlobDamaged",
    "BlobMissing",
    "BlobStore",
    "BlobWriter",
    "DiskTooSmall",
    "EngineStore",
    "NoRoomYet",
    "OverlayStore",
    "Place",
    "StorageAway",
    "StorageUnusable",
    "StoreFull",
    "Uploads",
    "label",
    "open_overlay",
    "open_place",
    "open_store",
    "open_uploads",
    "reach",
]


def open_store(root: Path) -> LocalBlobStore:
    return LocalBlobStore(root)


def open_place(place: Place) -> EngineStore:
    """The store at a place, in whatever process. Raises `StorageUnusable`."""
    if place.url is None:
        return LocalBlobStore(place.folder)
    bucket = reach(place.url, place.links)
    try:
        return ObjectBlobStore(bucket, BlobCache(place.folder, place.cache_bytes))
    except OSError as error:
        text = f"{place.folder}, for copies of what is in {place}, cannot be written: {error.strerror}; FEDCOORD_HOME names another home"
        raise StorageUnusable(text) from error


def open_overlay(aside: Path, place: Place) -> EngineStore:
    """The store at a place, which is not changed; what is written lies aside."""
    return OverlayStore(aside, [place.folder]) if place.url is None else StoreBeyond(aside, open_place(place))


def open_uploads(folder: Path, store: EngineStore) -> LocalUploads:
    """Uploads in a directory that become blobs of `store`."""
    return LocalUploads(folder, store)
