"""Standard output and error of processes in which libraries speak for themselves: nothing in what they say steers a terminal."""

import io
import sys
from typing import TextIO

from fedcybgd.shared.contract.plain import plain


class PlainStream(io.TextIOBase):
    """Warnings and tracebacks quote names that are anybody's: of tensors, of classes, of files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.write(plain(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def speak_plainly() -> None:
    """From now on; whoever has taken a stream of this process before goes on as before, so it is done before anything of others is imported."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, PlainStream):
            setattr(sys, name, PlainStream(stream))
