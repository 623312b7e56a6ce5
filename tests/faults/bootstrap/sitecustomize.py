"""Loaded by Python in every process of a system under test: names the points where it may die, and can kill it at one of them.

A copy stands on PYTHONPATH of the children only, in a folder FAULTS/as.NAME, for a training process keeps no other variable; the product
knows nothing of it. A point is (role of the process, the module and function of ours that is at work, operation, before or after). What
is to happen is said by files in FAULTS. The first two are opened before a training process raises its walls:

    seen          every point that was passed, a line each
    armed         the point at which the first process that reaches it dies, up to a zero; nothing when it is dead
    full.NAME     while it is there, the disk of the processes of that FAULTS_NAME is full
    clock.NAME    seconds that their clock is wrong by
"""

import builtins
import errno
import fcntl
import io
import mmap
import os
import re
import shutil  # noqa: F401 - it looks at os.unlink when it is imported: before that is wrapped
import signal
import sqlite3
import stat
import sys
import threading
import time
from importlib.machinery import PathFinder

FOLDER, _, NAME = __file__.rpartition("/")[0].rpartition("/as.")
ROLES = {
    "multiprocessing.forkserver": "engine",
    "fedcybgd.coordinator.cli": "web", "fedcybgd.agent.cli": "daemon", "fedcybgd.agent.trainer": "trainer",
}  # fmt: skip
ROLE = next((role for mark, role in ROLES.items() if any(mark in word for word in sys.orig_argv)), None)
OURS = "fedcybgd."
BELOW = (
    "coordinator.db.base", "coordinator.jobs.patience", "coordinator.storage.", "shared.files.volumes", "coordinator.jobs.taking:Queue.ask",
    "coordinator.api.versions",
)  # fmt: skip
"""What others do their writing with: a point has the name of those others."""
WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|CREATE|ALTER|DROP)\b", re.IGNORECASE)
exists, now, opened = os.path.exists, time.time, io.open
seen: set[str] = set()
transaction = threading.local()


def place() -> str | None:
    """Who of ours is at work, and in an engine for which kind of job; None where nobody of ours is."""
    found = lowest = kind = None
    frame = sys._getframe(2)
    while frame is not None:
        module, function = module_of(frame), frame.f_code.co_qualname
        if module is not None:
            here = f"{module}:{function}"
            if here == "coordinator.api.route:_in_one_job.<locals>.job":
                endpoint = frame.f_locals["endpoint"]
                here = f"{endpoint.__module__.removeprefix(OURS)}:{endpoint.__qualname__}"
            if here == "coordinator.jobs.engine_process:_run":
                kind = frame.f_locals["kind"]
            elif here.startswith("coordinator.jobs.taking:Queue.") and "job" in frame.f_locals:
                kind = frame.f_locals["job"].kind
            lowest = lowest or here
            if (found is None and not here.startswith(BELOW)) or (found and found.startswith("agent.client:") and module == "agent.client"):
                found = here  # of the agent's client what is called from outside
        frame = frame.f_back
    name = (found or lowest or "").replace(".<locals>", "")
    return (f"{name}({kind})" if kind else name) or None


def module_of(frame: object) -> str | None:
    values = frame.f_globals
    name = values.get("__name__") or ""
    if name in ("__main__", "__mp_main__") and values.get("__spec__") is not None:
        name = values["__spec__"].name
    return name.removeprefix(OURS) if name.startswith(OURS) else None


def point(where: str, operation: str, when: str) -> None:
    name = f"{ROLE} {where} {operation} {when}"
    if name not in seen:
        seen.add(name)
        os.write(SEEN, (name + "\n").encode())
    if not is_armed(name):
        return
    fcntl.flock(ARMED, fcntl.LOCK_EX)  # one process alone dies
    if is_armed(name):
        armed[0] = 0
        os.kill(os.getpid(), signal.SIGKILL)
    fcntl.flock(ARMED, fcntl.LOCK_UN)


def is_armed(name: str) -> bool:
    return armed[: len(name) + 1] == name.encode() + b"\0"


def wrapped(call, operation, applies=lambda *args, **more: True, fills=True):
    """The same call with a point on both sides. `fills`: it needs room on the disk."""

    def around(*args, **more):
        if not applies(*args, **more) or (where := place()) is None:
            return call(*args, **more)
        name = operation(*args) if callable(operation) else operation
        point(where, name, "before")
        if fills and is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result = call(*args, **more)
        point(where, name, "after")
        return result

    return around


def is_full() -> bool:
    return exists(f"{FOLDER}/full.{NAME}")


def to_write(file, mode="r", *_, **__) -> bool:
    return not isinstance(file, int) and any(c in mode for c in "wax+") and str(file) != os.devnull


def low_to_write(path, flags, *_, **__) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) and str(path) != os.devnull


def synced(descriptor) -> str:
    return "sync-directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync"


def watch_files() -> None:
    for name, fills in (("replace", True), ("rename", True), ("link", True), ("unlink", False), ("remove", False)):
        setattr(os, name, wrapped(getattr(os, name), name, fills=fills))
    os.fsync = wrapped(os.fsync, synced)
    io.open = builtins.open = wrapped(io.open, "open", to_write)
    os.open = wrapped(os.open, "open", low_to_write)


def watch_transactions(module) -> None:
    dialect = module.DefaultDialect
    execute, many, commit, rollback = dialect.do_execute, dialect.do_executemany, dialect.do_commit, dialect.do_rollback

    def noted(call):
        def around(self, cursor, statement, *args, **more):
            if WRITES.match(statement):
                transaction.writes = True
                if is_full():
                    raise sqlite3.OperationalError("database or disk is full")
            return call(self, cursor, statement, *args, **more)

        return around

    def committed(self, connection):
        where = place() if getattr(transaction, "writes", False) else None
        transaction.writes = False
        if where is not None:
            point(where, "commit", "before")
        commit(self, connection)
        if where is not None:
            point(where, "commit", "after")

    def rolled_back(self, connection):
        transaction.writes = False
        rollback(self, connection)

    dialect.do_execute, dialect.do_executemany = noted(execute), noted(many)
    dialect.do_commit, dialect.do_rollback = committed, rolled_back


def watch_requests(module) -> None:
    if ROLE == "daemon":
        module.Client.send = wrapped(module.Client.send, "request", fills=False)


def offset() -> float:
    note = f"{FOLDER}/clock.{NAME}"
    try:
        if not exists(note):
            return 0.0
        with opened(note) as file:
            return float(file.read())
    except OSError:
        return 0.0


def set_clock(module) -> None:
    """The coordinator's clock is one function, which others have by name already: its code is changed, not the name."""
    from datetime import UTC, datetime

    module.__dict__["_faulty_now"] = lambda: datetime.fromtimestamp(now() + offset(), UTC)

    def utcnow():
        return _faulty_now()  # noqa: F821 - a global of the module that this becomes a function of

    module.utcnow.__code__ = utcnow.__code__
    time.time = lambda: now() + offset()


class After:
    """Does something to a module once it is imported."""

    acts = {"sqlalchemy.engine.default": watch_transactions, "httpx._client": watch_requests, "fedcybgd.coordinator.db.base": set_clock}  # noqa: RUF012

    def find_spec(self, name, path=None, target=None):
        if (act := self.acts.get(name)) is None or (spec := PathFinder.find_spec(name, path, target)) is None:
            return None
        run = spec.loader.exec_module

        def run_and_act(module):
            run(module)
            act(module)

        spec.loader.exec_module = run_and_act
        return spec


if ROLE:
    SEEN = os.open(f"{FOLDER}/seen", os.O_WRONLY | os.O_APPEND)
    ARMED = os.open(f"{FOLDER}/armed", os.O_RDWR)
    armed = mmap.mmap(ARMED, 0)
    watch_files()
    sys.meta_path.insert(0, After())
