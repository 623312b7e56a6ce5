"""What an error says of a machine that has nothing more to give: no memory, no threads, no open files."""

import errno

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Too many open files, no memory, no more processes: the machine has nothing to give for now."""
NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed", "os error 12")
NO_MORE = (*NO_MEMORY, "start new thread", "os error 11)", "os error 24)")


def says_exhausted(error: BaseException) -> bool:
    """Whether an error passes once the machine has more to give, other than disk; libraries say so in words (torch has a RuntimeError)."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in EXHAUSTED
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in NO_MORE)
