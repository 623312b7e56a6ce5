"""Takes the network from this process and from all that it starts, by every means that the machine has."""

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any

from fedcybgd.agent.sandbox import kernel

FORBIDDEN = (
    "ptrace", "process_vm_readv", "process_vm_writev", "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "bpf", "perf_event_open",
    "keyctl", "add_key", "request_key", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "open_by_handle_at",
    "userfaultfd", "reboot", "swapon", "swapoff", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_tree", "move_mount", "fsopen",
    "pidfd_getfd", "mount_setattr",
)  # fmt: skip
"""Calls that training needs none of: they lead to other processes, other namespaces, or around the filter itself."""
LOCAL = 1
"""AF_UNIX"""
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x40000000
_FILTER_MODE, _SECCOMP = 2, 22


def take(local_sockets: bool) -> list[str]:
    """By which means there is no network from now on, the strongest first; empty: by none.

    The process must have one thread. `local_sockets` are sockets of this machine alone, which drivers of GPUs may need.
    """
    means = [name for name, how in (("network namespace", _namespace), ("seccomp", lambda: _filter(local_sockets))) if _done(how)]
    if "seccomp" not in means:
        sys.addaudithook(_no_sockets)
        means.append("Python's audit hook alone")
    return means


def _done(how: Any) -> bool:
    try:
        how()
    except OSError:
        return False
    return True


def _namespace() -> None:
    """A network of its own, without a device that is up."""
    try:
        kernel.unshare(kernel.NEW_NETWORK)
        return
    except PermissionError:
        user, group = os.getuid(), os.getgid()
    kernel.unshare(kernel.NEW_USER | kernel.NEW_NETWORK)
    # Nothing more is wanted of that namespace than its network: everybody in it is who he was.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def _filter(local_sockets: bool) -> None:
    machine = kernel.architecture()
    if machine is None:
        raise OSError("the system calls of this machine are not known")
    program = assemble(kernel.ARCHITECTURES[machine], [kernel.number(name) for name in FORBIDDEN], kernel.number("socket"), local_sockets)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    kernel.prctl(kernel.NO_NEW_PRIVILEGES, 1)
    kernel.prctl(_SECCOMP, _FILTER_MODE, ctypes.addressof(head))


def assemble(machine: int, forbidden: list[int], socket: int, local_sockets: bool) -> bytes:
    """The filter, as a program of the classic packet filter: what is forbidden is refused, all else is allowed."""
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _REFUSE),  # calls of another architecture are other calls
        (_LOAD, 0, 0, _NR), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE),
    ]  # fmt: skip
    for number in forbidden:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    steps += [(_EQUAL, 0, 3 if local_sockets else 1, socket)]
    steps += [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, LOCAL)] if local_sockets else []
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _no_sockets(event: str, _arguments: tuple[Any, ...]) -> None:
    if event.startswith("socket."):
        raise PermissionError(1, "the training process has no network")
