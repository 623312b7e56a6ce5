"""Where a process keeps its things: a directory that was named, or one that goes with the program."""

import tempfile
from pathlib import Path


class Place:
    def __init__(self, home: Path | str | None, name: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True) if home is None else None
        self.home = Path(self._temporary.name if self._temporary else home or "").expanduser().resolve()

    def forget(self) -> None:
        """Remove a directory that nobody named."""
        if self._temporary is not None:
            self._temporary.cleanup()
