"""Whose certificates this machine believes."""

import functools
import os
import ssl
from collections.abc import Callable
from pathlib import Path

Read = Callable[[], ssl.SSLContext]


def believed(read: Read) -> ssl.SSLContext:
    """What `read` makes of the environment: once, as that takes longer than most calls, and again when those of SSL_CERT_FILE are others."""
    file = os.environ.get("SSL_CERT_FILE")
    changed = Path(file).stat().st_mtime_ns if file and Path(file).exists() else None
    return _read(read, file, os.environ.get("SSL_CERT_DIR"), changed)


@functools.cache
def _read(read: Read, _file: str | None, _folder: str | None, _changed: int | None) -> ssl.SSLContext:
    return read()
