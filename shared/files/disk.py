"""What an error of a disk means."""

import errno
from typing import Any, Literal

from fedcybgd.shared.contract.errors import DataAway, DataError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
UNWRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
NAMED_WRONG = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ})
WORDS = ("no space left", "disk quota", "file too large", "os error 28", "os error 122", "os error 27")


def disk_reason(error: OSError) -> Literal["disk_full", "disk_unwritable"] | None:
    if error.errno in FULL:
        return "disk_full"
    return "disk_unwritable" if error.errno in UNWRITABLE else None


def unreadable(error: OSError, message: str, **detail: Any) -> DataError:
    """`DataAway` where the system refuses what may be given later: a share that is away, a right that is missing, too many open files.

    What libraries raise without a number is of the bytes, and stays as it is.
    """
    passes = error.errno is not None and error.errno not in NAMED_WRONG
    return (DataAway if passes else DataError)(message, **detail)


def says_full(error: BaseException) -> bool:
    """Whether an error is a full disk's; libraries say so in words (safetensors has a class of its own, torch a RuntimeError)."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    text = str(error).lower()
    return any(word in text for word in WORDS)
