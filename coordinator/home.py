"""The home of a coordinator: held by one process, with a database that can be used, or one line that says why not."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, overload

from alembic.util import CommandError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.outage import is_full
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.files.disk import disk_reason
from fedcybgd.shared.files.volumes import settle

LOCK = "coordinator.lock"


class HomeUnusable(CoordinatorError):
    """The directory cannot be made, written or locked."""

    code = "home_unusable"


class HomeFull(HomeUnusable):
    """There is no room for what the home must hold."""

    code = "disk_full"


class HomeTaken(CoordinatorError):
    """A coordinator runs on this home, or on this SQLite file, already."""

    code = "home_taken"


class NoCoordinator(CoordinatorError):
    """There is no database to work on."""

    code = "no_coordinator"


class DatabaseUnusable(CoordinatorError):
    """The database is damaged, of a newer version, or out of reach."""

    code = "database_unusable"


class SchemaTooOld(CoordinatorError):
    """The database is of an earlier schema, and it is not for this process to bring it to the newest."""

    code = "schema_too_old"


def bring_up(database: Database, settings: Settings) -> None:
    """Have the newest schema, at a start. Raises `SchemaTooOld` where only a person makes it so."""
    if settings.migrate == "start":
        migrate.upgrade(database.engine)
    else:
        check_schema(database, "and FEDCOORD_MIGRATE=never: `fedcoord db upgrade` brings it there")


def check_schema(database: Database, what_then: str) -> None:
    """Raise `SchemaTooOld`, which ends in `what_then`, unless the database is of the newest schema; and `CommandError` of a newer one."""
    if (found := migrate.current(database.engine)) != migrate.newest():
        migrate.check_known(found)
        raise SchemaTooOld(f"the database is of schema {found or 'none'}, this program needs {migrate.newest()}, {what_then}")


@contextmanager
def occupied(settings: Settings) -> Iterator[None]:
    """Hold the home, so that no second coordinator starts on it. The kernel lets go of it when this process ends, however it ends."""
    places = {(settings.home / LOCK).resolve()}
    if (file := sqlite_file(settings)) is not None and file.resolve().parent != settings.home.resolve():
        places.add(file.with_name(file.name + ".lock").resolve())
    with ExitStack() as held:
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
            settings.home.chmod(0o700)
            for place in sorted(places):
                held.enter_context(_locked(place))
        except OSError as error:
            raise refused(
                settings.home, error, f"{settings.home} cannot be the home of a coordinator: {error}; --home names another"
            ) from error
        yield


def refused(place: Path, error: OSError, said: str) -> HomeUnusable:
    """What is raised where a file in `place` cannot be made, written or read; a full disk is told as one, everything else as `said`."""
    if disk_reason(error) != "disk_full":
        return HomeUnusable(said)
    return HomeFull(f"the disk of {place} is full ({error.strerror}); free space, then start again")


@contextmanager
def full_told(home: Path) -> Iterator[None]:
    """Have what does not fit into the home raise `HomeFull`."""
    try:
        yield
    except OSError as error:
        if disk_reason(error) == "disk_full":
            raise refused(home, error, "") from error
        raise


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with place.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            who = f"process {number}" if (number := file.read(20).strip()) else "another process"
            raise HomeTaken(
                f"a coordinator runs on {place.parent} already ({who}); stop that one first, or give this one a directory of its own with --home"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def home_id(home: Path) -> str:
    """A name of this directory, made once and kept in it: whoever holds it next knows what of its former holder's there is."""
    file = home / "home.id"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        name = f"hom_{secrets.token_hex(8)}"
        part = home / f"home.id.{secrets.token_hex(4)}"
        part.write_text(f"{name}\n")
        part.replace(file)
        return name


def write_secret(file: Path, secret: str) -> None:
    """A file that its owner alone may read, from the start on; it outlasts a power cut, as what the database says under it does."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as opened:
        opened.write(secret + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    settle(file.parent)


def leave_secret(file: Path, secret: str) -> None:
    """The same where there is none yet: of several coordinators that start together one leaves it."""
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    write_secret(part, secret)
    try:
        os.link(part, file)
    except FileExistsError:
        pass
    finally:
        part.unlink()


@overload
def signing_secret(settings: Settings, make: Literal[True]) -> bytes: ...
@overload
def signing_secret(settings: Settings) -> bytes | None: ...
def signing_secret(settings: Settings, make: bool = False) -> bytes | None:
    """The secret of this home under which the signing key is sealed; it is in no backup. None: it has none, and none is to be made."""
    try:
        text = settings.signing_secret.read_text().strip()
    except FileNotFoundError:
        if not make:
            return None
        write_secret(settings.signing_secret, text := secrets.token_hex(32))
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise HomeUnusable(
            f"{settings.signing_secret} is no secret of 64 hexadecimal digits; put it back, or delete it and have a new key made"
        )
    return secret


def sqlite_file(settings: Settings) -> Path | None:
    """The file of the database, None for PostgreSQL."""
    with understood(settings):
        url = make_url(settings.url)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def existing_database(settings: Settings) -> Database:
    """The database of a coordinator that was started before; nothing is made."""
    file = sqlite_file(settings)
    where = settings.home if settings.database_url is None else "the database"
    missing = NoCoordinator(f"there is no coordinator in {where}; `fedcoord serve` makes one, --home or FEDCOORD_HOME names another")
    if file is not None and not file.is_file():
        raise missing
    with understood(settings):
        database = Database(settings.url, settings.at_once)
        if migrate.current(database.engine) is None:
            raise missing
    return database


def database_to_upgrade(settings: Settings) -> Database:
    """That of a coordinator that was started before; or, of PostgreSQL, one that has no tables yet."""
    return existing_database(settings) if sqlite_file(settings) is not None else Database(settings.url)


@contextmanager
def understood(settings: Settings) -> Iterator[None]:
    """What a database says against being used becomes one line for a person."""
    kind = settings.url.partition(":")[0].partition("+")[0]
    if kind not in ("sqlite", "postgresql"):
        raise DatabaseUnusable(
            f"FEDCOORD_DATABASE_URL begins with {kind:.20}: a database is postgresql://user:password@host/name, or without that setting a file of SQLite"
        )
    try:
        yield
    except CommandError as error:
        raise DatabaseUnusable(f"the database was made by another version of fedcoord ({error}); install the newer one") from error
    except ArgumentError as error:
        raise DatabaseUnusable(
            f"FEDCOORD_DATABASE_URL is no address of a database: {error}; write postgresql://user:password@host/name"
        ) from error
    except ModuleNotFoundError as error:
        raise DatabaseUnusable(
            f"the database needs the Python package {error.name}; for PostgreSQL: pip install '.[postgresql]'"
        ) from error
    except SQLAlchemyError as error:
        reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
        place = make_url(settings.url).render_as_string(hide_password=True)
        if is_full(error):
            raise HomeFull(f"the disk of the database {place} is full; free space, then start again") from error
        damaged = any(word in reason for word in ("malformed", "not a database"))
        advice = "the file is damaged, restore a backup (docs/operating.md)" if damaged else "mend that, then try again"
        raise DatabaseUnusable(f"the database {place} cannot be used: {reason}; {advice}") from error
