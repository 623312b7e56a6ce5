"""What several coordinators on one database must have in common, looked at before one of them does anything."""

import logging
import os
import secrets
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Instance
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.home import HomeUnusable, NoCoordinator, refused, signing_secret
from fedcybgd.coordinator.places import place_of
from fedcybgd.coordinator.services.records import instance, replicas, signing
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import Place, StorageUnusable, label, reach
from fedcybgd.shared.contract.digests import digest_of

log = logging.getLogger("fedcoord")
LABEL = "store.id"
STARTS_WITHIN = timedelta(minutes=1)
"""Whoever made a signing key says that it lives within this time."""


class StoreDiffers(CoordinatorError):
    """The directory of the blobs is not the one that this database goes with, while others use that."""

    code = "store_differs"


class SecretDiffers(CoordinatorError):
    """This coordinator has not the secrets of the others on its database."""

    code = "secret_differs"


def check(session: Session, settings: Settings, home: str, now: datetime) -> None:
    """Raise `StoreDiffers` where blobs and database do not go together, `SecretDiffers`, or `StorageUnusable`. Whoever starts meanwhile waits.

    A home with an SQLite file and blobs of its own has nobody to share with, and is not looked at.
    """
    place = place_of(settings)
    if settings.shared is None and place.url is None and not settings.url.startswith("postgresql"):
        return
    identity = instance.identity(session, now)
    session.flush()
    store, whose = _label(settings, place, identity)
    where = place.url or settings.common
    other = "directory with FEDCOORD_SHARED or FEDCOORD_HOME" if place.url is None else "prefix with FEDCOORD_STORAGE"
    if whose != identity:
        raise StoreDiffers(
            f"the blobs in {where} belong to the database {whose}, and this one is {identity}: what one does not need it would delete "
            f"for both. Name another {other}; or, if that database is gone for good, delete {LABEL} there"
        )
    known = session.scalars(select(Instance).where(Instance.id == identity)).one()
    if known.store not in (None, store) and replicas.is_another_alive(session, home, now):
        raise StoreDiffers(
            f"a coordinator that lives on this database has its blobs elsewhere than in {where}: all of them need one place, "
            "FEDCOORD_SHARED or FEDCOORD_STORAGE names it. If that one was just stopped or killed, start this one again in a moment"
        )
    known.store = store
    if place.url is not None:
        _check_secrets(session, settings, known, replicas.is_another_alive(session, home, now), now)


def _check_secrets(session: Session, settings: Settings, known: Instance, is_another_alive: bool, now: datetime) -> None:
    """Coordinators that have their blobs in object storage need no directory in common, and yet the same secrets."""
    key = signing.newest(session)
    # Of two that start at once one makes the key, and says only later in its start that it lives.
    if key is not None and (is_another_alive or now - key.created_at < STARTS_WITHIN):
        try:
            signing.opened(key, signing_secret(settings))
        except signing.SigningKeyLost as error:
            raise _secret_differs(settings.signing_secret, "agents would not know who answers") from error
    if settings.webhook_url is None:
        return
    try:
        found = digest_of(settings.webhook_secret.read_bytes().strip())
    except OSError:  # it is made later in a start, and then this is looked at again
        found = None
    if is_another_alive and known.webhook_secret not in (None, found):
        raise _secret_differs(settings.webhook_secret, "whoever is told could not check who tells")
    known.webhook_secret = found or known.webhook_secret


def _secret_differs(file: Path, why: str) -> SecretDiffers:
    return SecretDiffers(
        f"{file} is not there, or another than that of a coordinator that lives on this database, or starts on it: {why}. Copy the file from its home, "
        "or have all of them use one directory (FEDCOORD_SHARED). If that one was just stopped for good, start this one again in a minute"
    )


def check_blobs(session: Session, settings: Settings) -> None:
    """Raise `StoreDiffers` unless the blobs here are those of the coordinators on this database; `HomeUnusable` or `StorageUnusable` where
    they cannot be written.

    For whoever does jobs for them; no place becomes theirs by it.
    """
    known = session.scalars(select(Instance)).one_or_none()
    if known is None:
        raise NoCoordinator("no coordinator has used this database yet; `fedcoord serve` begins with it")
    place = place_of(settings)
    if settings.shared is not None or place.url is not None or settings.url.startswith("postgresql"):
        labelled = (settings.common / LABEL).is_file() if place.url is None else reach(place.url).read(LABEL) is not None
        if not labelled or (known.store, known.id) != _label(settings, place, known.id):
            raise StoreDiffers(
                f"the coordinators on this database have their blobs elsewhere than in {place.url or settings.common}: FEDCOORD_SHARED or "
                "FEDCOORD_STORAGE names the place"
            )
    if place.url is None:
        try:
            with tempfile.TemporaryFile(dir=place.folder):
                pass
        except OSError as error:
            raise refused(
                place.folder, error, f"{place.folder}, where the coordinators have their blobs, cannot be written: {error.strerror}"
            ) from error


def tell_of_connections(session: Session, connections: int, now: datetime) -> None:
    """Say in the log where PostgreSQL has not so many connections as the coordinators on it may want together."""
    if session.get_bind().dialect.name != "postgresql":
        return
    left = session.scalar(text("SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"))
    wanted = len(replicas.alive(session, now)) * connections
    if wanted > (left or 0):
        log.warning(
            "the coordinators on this database may want %d connections, and PostgreSQL gives %d: set FEDCOORD_THREADS lower, "
            "or its max_connections higher",
            wanted, left,
        )  # fmt: skip


def _label(settings: Settings, place: Place, identity: str) -> tuple[str, str]:
    """Id of the place, and of the database that it belongs to: of whichever came first."""
    return _label_of_folder(settings.common, identity) if place.url is None else _label_of_bucket(place.url, identity)


def _label_of_bucket(url: str, identity: str) -> tuple[str, str]:
    text = label(url, LABEL, f"sto_{secrets.token_hex(8)} {identity}\n")
    try:
        store, whose = text.split()
    except ValueError as error:
        raise StorageUnusable(f"{LABEL} in {url} is none that a coordinator wrote: {text[:100]!r}") from error
    return store, whose


def _label_of_folder(folder: Path, identity: str) -> tuple[str, str]:
    file = folder / LABEL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            part = folder / f"{LABEL}.{secrets.token_hex(4)}"
            part.write_text(f"sto_{secrets.token_hex(8)} {identity}\n")
            try:
                os.link(part, file)
            except FileExistsError:
                pass  # by another, a moment ago
            finally:
                part.unlink()
        store, whose = file.read_text().split()
    except OSError as error:
        raise refused(folder, error, f"{file} cannot be made or read: {error}") from error
    except ValueError as error:
        raise HomeUnusable(f"{file} cannot be made or read: {error}") from error
    return store, whose
