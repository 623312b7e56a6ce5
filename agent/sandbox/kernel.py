"""Calls of Linux that the standard library does not have."""

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None

NO_NEW_PRIVILEGES, PARENT_DEATH_SIGNAL = 38, 1
NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# The numbers of system calls by architecture: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
_NUMBERS: dict[str, tuple[int, int]] = {
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "bpf": (321, 280),
    "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "open_by_handle_at": (304, 265), "userfaultfd": (323, 282), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "pidfd_getfd": (438, 438), "mount_setattr": (442, 442),
    "capset": (126, 91),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip


def architecture() -> str | None:
    """The name of this machine's architecture, if its system calls are known here."""
    machine = platform.machine()
    return machine if machine in ARCHITECTURES and sys.maxsize > 2**32 else None


def number(name: str) -> int:
    return _NUMBERS[name][0 if architecture() == "x86_64" else 1]


def syscall(name: str, *arguments: object) -> int:
    """Raises `OSError`."""
    if _libc is None or architecture() is None:
        raise OSError(f"{name} is not known on this machine")
    return _checked(_libc.syscall(number(name), *arguments), name)


def prctl(option: int, *arguments: int) -> None:
    if _libc is None:
        raise OSError("prctl is of Linux")
    _checked(_libc.prctl(option, *[ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]), "prctl")


def unshare(flags: int) -> None:
    if _libc is None:
        raise OSError("unshare is of Linux")
    _checked(_libc.unshare(flags), "unshare")


def keep_capabilities(kept: int) -> None:
    """Let go of all capabilities (of root, or of a namespace of one's own) but those in the mask `kept`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    have = next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:")) & kept
    low, high = have & 0xFFFFFFFF, have >> 32
    head = ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0))
    syscall("capset", head, ctypes.create_string_buffer(struct.pack("6I", low, low, 0, high, high, 0)))


def _checked(result: int, name: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result
