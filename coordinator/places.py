"""Where the blobs of a coordinator are, by its settings."""

from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import Place


def place_of(settings: Settings) -> Place:
    """In its directory, or in object storage with copies in its home."""
    if settings.storage is None:
        return Place(settings.blobs)
    return Place(settings.home / "cache", settings.storage, links=settings.storage_links, cache_bytes=int(settings.storage_cache_gb * 1e9))
