"""A PostgreSQL server of our own for the tests, as an unprivileged user, in a temporary directory."""

import functools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.support.migrated import bring_up


def find_program(name: str) -> str | None:
    """initdb and friends; Debian keeps them off the PATH."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or next((str(path) for path in packaged), None)


MEMORY = Path("/dev/shm")
"""A database is made there in a tenth of the time that a disk takes."""
ROOM = 4 * 10**9
"""Bytes that must be free there: half of it is for others."""


def _place() -> Path | None:
    """Where data lie that nobody needs after the tests; None: with all other temporary files."""
    return MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM else None


def _test() -> str:
    """The test that is under way."""
    return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]


class PostgresServer:
    """Started by the constructor, gone after `stop`; `new_database` gives a URL to an empty database, or to a copy of another."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="fedcybgd-postgres-", dir=_place()))
        self._made: dict[str, str] = {}
        """name of a database → the test that it was made in"""
        initdb, self._pg_ctl = find_program("initdb"), find_program("pg_ctl")
        assert initdb, "initdb was not found"
        assert self._pg_ctl, "pg_ctl was not found"
        self._data = folder / "data"
        self._user = "postgres"
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root; the package made a user for it, else nobody will do.
            self._user = next(u.pw_name for name in ("postgres", "nobody") for u in pwd.getpwall() if u.pw_name == name)
            shutil.chown(folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run(initdb, "-D", str(self._data), "-U", "fed", "--auth=trust", "-E", "UTF8", "--no-sync")
        self._start()

    def _start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c max_connections=200"
        self._run(str(self._pg_ctl), "-D", str(self._data), "-w", "-o", options, "-l", str(self._data.parent / "log"), "start")

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Gone at once, as by a crash; started again afterwards."""
        self._run(str(self._pg_ctl), "-D", str(self._data), "-m", "immediate", "stop")
        yield
        self._start()

    @contextmanager
    def closed(self, url: str) -> Iterator[None]:
        """One database takes no connections, and those there are end; other tests keep theirs."""
        name = url.rpartition("/")[2]
        with psycopg.connect(f"postgresql://fed@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")  # type: ignore[call-overload]
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")  # type: ignore[call-overload]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections, as far as the kernel does so by itself, and answers nothing."""
        processes = self.processes()
        for process in processes:
            process.suspend()
        yield
        for process in processes:
            if process.is_running():
                process.resume()

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        return [first, *first.children(recursive=True)]

    def _run(self, *command: str) -> None:
        switch = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=60, **switch)  # type: ignore[call-overload]

    def new_database(self, template: str = "template1", options: str = "STRATEGY file_copy") -> str:
        name = f"fed_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(f"postgresql://fed@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            self._drop_left(connection)
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {options}")  # type: ignore[call-overload]
            self._made[name] = _test()
        return f"postgresql://fed@127.0.0.1:{self.port}/{name}"

    def _drop_left(self, connection: Any) -> None:
        """Those of tests that are over, unless somebody is connected still; 8 MB each."""
        used = {
            row[0] for row in connection.execute("SELECT datname FROM pg_stat_activity").fetchall()
        }  # to drop one would take five seconds
        for name in [name for name, test in self._made.items() if test != _test() and name not in used]:
            with suppress(psycopg.errors.ObjectInUse):
                connection.execute(f"DROP DATABASE {name}")
                del self._made[name]

    def database_with_schema(self) -> str:
        """The URL to one that is migrated, and has no rows."""
        return self.new_database(self._migrated)

    @functools.cached_property
    def _migrated(self) -> str:
        url = self.new_database()
        bring_up(url)
        name = url.rpartition("/")[2]
        del self._made[name]  # others are copies of it
        return name

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self._run(str(self._pg_ctl), "-D", str(self._data), "-m", "immediate", "stop")
        shutil.rmtree(self._data.parent, ignore_errors=True)
