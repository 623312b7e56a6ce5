"""Where the blobs of a coordinator are, as every process of it is told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    folder: Path
    """of the blobs; where they are in object storage, of copies of them"""
    url: str | None = None
    """of the object storage; None: they are in the folder"""
    links: str | None = None
    """the endpoint in links, where it is not the one that this machine uses; "off": there are none"""
    cache_bytes: int = 0
    """of the copies at the most, beside those that are being read"""

    def __str__(self) -> str:
        """For people."""
        return self.url or str(self.folder)
