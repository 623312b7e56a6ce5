"""What an error of a disk means."""

import errno
from typing import Literal

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
UNWRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Too many open files, no memory, no more processes: the machine has nothing to give for now."""
WORDS = ("no space left", "disk quota", "file too large", "os error 28", "os error 122", "os error 27")


def disk_reason(error: OSError) -> Literal["disk_full", "disk_unwritable"] | None:
    if error.errno in FULL:
        return "disk_full"
    return "disk_unwritable" if error.errno in UNWRITABLE else None


def says_full(error: BaseException) -> bool:
    """Whether an error is a full disk's; libraries say so in words (safetensors has a class of its own, torch a RuntimeError)."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    text = str(error).lower()
    return any(word in text for word in WORDS)
