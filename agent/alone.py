"""One process at a time in a directory."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcybgd.agent.errors import AgentError


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a file as the only process. Raises `AgentError` where another one does."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentError(f"{what} in {lock.parent} already") from error
        yield
