"""A run file as it is given: a path, a mapping, or a `RunFile` itself."""

from collections.abc import Mapping
from pathlib import Path

from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, checked, parse_run_file

Given = RunFile | Mapping[str, object] | Path | str


def read(given: Given) -> tuple[RunFile, Path]:
    """The run file, and the folder that `evaluate.held_out` is relative to: that of the file, else the present one.

    Raises `RunFileInvalid`: with field and line, or what kept the file from being read.
    """
    if isinstance(given, RunFile):
        return given, Path()
    if isinstance(given, Mapping):
        return checked(given), Path()
    return read_file(Path(given)), Path(given).parent


def read_file(file: Path) -> RunFile:
    try:
        return parse_run_file(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise RunFileInvalid(f"{file}: byte {error.start} is no UTF-8; save the file as UTF-8 text") from error
    except OSError as error:
        raise RunFileInvalid(f"{file} cannot be read: {error.strerror}") from error
