"""Reads the run file that an operator names."""

from pathlib import Path

from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, parse_run_file


def read_run_file(file: Path) -> RunFile:
    """Raises `RunFileInvalid`: with field and line, or what kept the file from being read."""
    try:
        return parse_run_file(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise RunFileInvalid(f"{file}: byte {error.start} is no UTF-8; save the file as UTF-8 text") from error
    except OSError as error:
        raise RunFileInvalid(f"{file} cannot be read: {error.strerror}") from error
