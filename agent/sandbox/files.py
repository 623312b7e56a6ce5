"""Leaves to this process the files that it needs, and no others: Landlock of Linux, where the kernel has it."""

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from fedcybgd.agent.sandbox import kernel

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
TRUNCATE = 1 << 14
REFER = 1 << 13
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
READ = EXECUTE | READ_FILE | READ_DIR
_VERSION, _PATH_BENEATH = 1, 1
_SCOPES = 0b11  # abstract sockets and signals of others
_CONNECT_OR_BIND = 0b11


def everything(version: int) -> int:
    """The rights over files that Landlock of this version can take away. Devices' own commands are left: drivers of GPUs are made of them."""
    return (1 << 13) - 1 | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)


def version() -> int:
    """Of Landlock in this kernel; 0: there is none."""
    try:
        return kernel.syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    except OSError:
        return 0


def leave(listed: Iterable[Path], read: Iterable[Path], write: Iterable[Path], used: Iterable[Path], named: Iterable[Path] = ()) -> int:
    """From now on: names in `listed`, contents of `read`, everything in `write`, devices `used`; files that are there in `named` may be written.

    What is not there is left out.

    Returns the version of Landlock, 0 where there is none. Raises `OSError` where it cannot be had.
    """
    found = version()
    if not found:
        return 0
    allowed = everything(found)
    size = 8 if found < 4 else 16 if found < 6 else 24
    attributes = struct.pack("QQQ", allowed, _CONNECT_OR_BIND, _SCOPES)[:size]
    ruleset = kernel.syscall(
        "landlock_create_ruleset", ctypes.create_string_buffer(attributes, size), ctypes.c_size_t(size), ctypes.c_uint(0)
    )
    try:
        devices = READ_FILE | WRITE_FILE | READ_DIR
        for paths, rights in (
            (listed, READ_DIR),
            (read, READ),
            (write, allowed & ~EXECUTE),
            (used, devices),
            (named, WRITE_FILE | TRUNCATE),
        ):
            for path in paths:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    _allow(ruleset, path, rights & allowed)
        kernel.prctl(kernel.NO_NEW_PRIVILEGES, 1)
        kernel.syscall("landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return found


def _allow(ruleset: int, path: Path, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= OF_FILES
        rule = struct.pack("=Qi", rights, place)
        kernel.syscall(
            "landlock_add_rule",
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            ctypes.create_string_buffer(rule, len(rule)),
            ctypes.c_uint(0),
        )
    finally:
        os.close(place)
