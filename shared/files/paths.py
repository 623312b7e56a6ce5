"""Names from the wire become paths here and nowhere else: a name is one step down, or it is refused."""

import os
from pathlib import Path

from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.errors import FedError


class UnsafeName(FedError):
    """A name that came from elsewhere would lead out of the directory it belongs to."""

    code = "unsafe_name"


def inside(root: Path, name: str) -> Path:
    """The file or folder `name` of `root`. Raises `UnsafeName` unless it lies in `root` itself, and is no link to elsewhere."""
    path = root / name
    if name in ("", ".", "..") or "\0" in name or "\\" in name or path.name != name or path.parent != root:
        raise UnsafeName(f"{name[:100]!r} is no plain file name")
    if path.is_symlink():
        raise UnsafeName(f"{path} is a link; what it points to is not ours to write")
    return path


def folder_name(*parts: str) -> str:
    """One name for what belongs to all of `parts` together, whatever characters they have."""
    return digest_of("\0".join(parts).encode())[:32]


def open_for_appending(path: Path) -> int:
    """A descriptor that appends to `path`, which is made if it is not there; a link in its place is an error of the system."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
