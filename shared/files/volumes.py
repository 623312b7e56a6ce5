"""Moves files, also from one file system to another: directories of one home may lie on different volumes, some on another machine."""

import errno
import os
import secrets
import shutil
from pathlib import Path

import psutil

CHUNK = 1 << 20
NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs",
    "nfs4", "smb3", "smbfs", "virtiofs",
})  # fmt: skip
"""What Linux calls file systems whose files other machines may write too"""


def network_file_system(place: Path) -> str | None:
    """What the file system of `place` is called if other machines may use it too, as far as is known."""
    mounted = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    kind = next((mounted[folder] for folder in place.resolve().parents if folder in mounted), "")
    return kind if kind in NETWORK else None


def settle(folder: Path) -> None:
    """Have the names of a folder outlast a power cut, as its files do that were synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename `source`, or copy it where a rename cannot reach: `target` is whole, or as it was, and then `source` is still there."""
    try:
        source.replace(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    aside = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        with source.open("rb") as reading, aside.open("wb") as writing:
            shutil.copyfileobj(reading, writing, CHUNK)
            writing.flush()
            os.fsync(writing.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    source.unlink(missing_ok=True)
