"""What an error of a disk means."""

import errno
from typing import Literal

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
UNWRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


def disk_reason(error: OSError) -> Literal["disk_full", "disk_unwritable"] | None:
    if error.errno in FULL:
        return "disk_full"
    return "disk_unwritable" if error.errno in UNWRITABLE else None
