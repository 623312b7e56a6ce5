"""Copies a coordinator while it works: its database, then every blob that the copied database may name."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.home import existing_database, sqlite_file
from fedcybgd.coordinator.places import place_of
from fedcybgd.coordinator.services.emulators import mending
from fedcybgd.coordinator.services.upkeep import garbage
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobDamaged, BlobMissing, BlobStore, open_place
from fedcybgd.shared.files.volumes import move

CHUNK = 1 << 20
COPIES = ("coordinator.db", "coordinator.db.part", "coordinator.dump", "coordinator.part", "blobs")
"""What a backup, also one that was cut short, has in its directory."""


class BackupFailed(CoordinatorError):
    """The copy is not complete; what it lacks is named."""

    code = "backup_failed"


class BackupMisplaced(CoordinatorError):
    """A backup would be written into what it copies, or among files that are none of its own."""

    code = "backup_misplaced"


@dataclass(frozen=True)
class Backup:
    blobs: int
    copied: int
    """those that an earlier backup in the same directory did not have"""
    bytes: int


def backup(settings: Settings, target: Path, copied: Callable[[str], None] = lambda _: None) -> Backup:
    """Make `target` a home that `serve` can be started on. Nothing is deleted from the store meanwhile; the coordinator may go on working.

    `copied` hears "database" and "blobs". Raises `BackupFailed`; all that can be copied is copied all the same. Raises
    `BackupMisplaced` before anything is written where the target is no place for a backup.
    """
    check_target(settings, target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        target.chmod(0o700)
    except OSError as error:
        raise BackupMisplaced(f"{target} cannot be made or written: {error.strerror or error}; choose another directory") from error
    database = existing_database(settings)
    store = open_place(place_of(settings))
    try:
        with store.hold():
            with database.reading() as session:
                needed = garbage.needed(session, utcnow())
            _copy_database(settings, target)
            copied("database")
            done, lost = _copy_blobs(store, target / "blobs")
            copied("blobs")
        if missing := sorted((needed - done.keys()) | lost):
            with database.reading() as session:
                names = "; ".join(f"{mending.names_of(session, digest)} ({digest})" for digest in missing[:10])
            raise BackupFailed(f"{len(missing)} blobs are missing or damaged in {place_of(settings)}: {names}", missing=missing)
    finally:
        database.close()
    return Backup(len(done), sum(fresh for fresh, _ in done.values()), sum(size for _, size in done.values()))


def check_target(settings: Settings, target: Path) -> None:
    """Raise `BackupMisplaced` unless `target` is new, empty, or holds an earlier backup."""
    place = target.resolve()
    for copied in {settings.home, settings.common}:
        if place.is_relative_to(copied.resolve()) or copied.resolve().is_relative_to(place):
            raise BackupMisplaced(f"{target} is, holds or lies in the home that is copied ({copied}); choose a directory beside it")
    if place.exists() and not place.is_dir():
        raise BackupMisplaced(f"{target} is no directory")
    if place.is_dir() and any(place.iterdir()) and not any((place / name).exists() for name in COPIES):
        raise BackupMisplaced(f"{target} has files of something else in it; choose an empty directory, or one with an earlier backup")


def _copy_database(settings: Settings, target: Path) -> None:
    file = sqlite_file(settings)
    if file is None:
        _dump(settings.url, target / "coordinator.dump")
        return
    part = target / "coordinator.db.part"
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(part)) as copy:
        source.backup(copy)
    part.replace(target / "coordinator.db")


def _dump(url: str, target: Path) -> None:
    address = make_url(url)
    part = target.with_suffix(".part")
    plain = address.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    # Who lives on this database is nobody on a restored one.
    command = ["pg_dump", "--format=custom", "--exclude-table-data=replica", "--file", str(part), plain]
    password = {"PGPASSWORD": str(address.password)} if address.password is not None else {}
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **password})
    except FileNotFoundError as error:
        raise BackupFailed("pg_dump was not found: install the programs of PostgreSQL on this machine") from error
    except subprocess.CalledProcessError as error:
        raise BackupFailed(f"pg_dump failed: {error.stderr.strip()[:1000]}") from error
    part.replace(target)


def _copy_blobs(store: BlobStore, target: Path) -> tuple[dict[str, tuple[bool, int]], set[str]]:
    """digest → (whether it was copied now, bytes), and what could not be."""
    done: dict[str, tuple[bool, int]] = {}
    lost: set[str] = set()
    for digest, _ in list(store.stored()):
        place = target / digest[:2] / digest
        try:
            size = store.size(digest)
            if fresh := not (place.is_file() and place.stat().st_size == size):
                place.parent.mkdir(parents=True, exist_ok=True)
                part = place.with_name(f"{digest}.part")
                with store.open(digest) as source, part.open("wb") as copy:
                    shutil.copyfileobj(source, copy, CHUNK)
                move(part, place)
            done[digest] = fresh, size
        except (BlobMissing, BlobDamaged):
            lost.add(digest)
    return done, lost
