"""Between a program and the process that it has started: a file that says how the start went, and an end that is noticed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.starting import StartReport
from fedcybgd.shared.contract.words import ErrorBody


class ReadyFileUnusable(FedError):
    """The file that should say how the start went cannot be written."""

    code = "ready_file_unusable"


def clear(file: Path) -> None:
    """Remove what an earlier start left. Raises `ReadyFileUnusable`, also where nothing could be written later."""
    try:
        file.unlink(missing_ok=True)
        os.close(_opened(file))
        _aside(file).unlink()
    except OSError as error:
        raise ReadyFileUnusable(f"{file} cannot be written: {error.strerror or error}; --ready-file names another") from error


def tell(file: Path, report: StartReport) -> None:
    """Write a report, whole or not at all; only its owner may read it, for it may have a key in it."""
    with os.fdopen(_opened(file), "w", encoding="utf-8") as aside:
        aside.write(report.model_dump_json() + "\n")
    _aside(file).replace(file)


@contextmanager
def reported(file: Path | None) -> Iterator[None]:
    """Have whatever keeps a process from starting said in the file, too."""
    if file is not None:
        clear(file)
    try:
        yield
    except FedError as error:
        with suppress(OSError):  # a full disk; it is raised all the same
            if file is not None:
                tell(file, StartReport(failed=ErrorBody(code=error.code, message=error.message)))
        raise


def told(file: Path) -> StartReport | None:
    """What was reported; None as long as nothing was."""
    try:
        return StartReport.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def stop_at_eof(stream: int = 0) -> None:
    """SIGTERM to this process once the other end of `stream` is closed: the program that started it has ended, however it did."""

    def listen() -> None:
        while os.read(stream, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, name="until-eof", daemon=True).start()


def _aside(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _opened(file: Path) -> int:
    return os.open(_aside(file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
