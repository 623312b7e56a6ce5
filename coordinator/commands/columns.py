"""Which column of a file supplies which field: the option `--column`, and what a run file says of files like it."""

from pathlib import Path
from typing import Annotated

import typer

from fedcybgd.coordinator.domain.run_file import EvaluateSection
from fedcybgd.coordinator.errors import OptionInvalid
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.files.tables import SUFFIXES, column_names

Column = Annotated[list[str], typer.Option(help="FIELD=COLUMN, where they differ: text=question. May be repeated.")]


def columns_of(said: list[str]) -> dict[str, str]:
    """Field → column."""
    found = dict(each.partition("=")[::2] for each in said)
    if wrong := [field for field, column in found.items() if not field or not column]:
        raise OptionInvalid(f"--column {wrong[0]}: say FIELD=COLUMN, as in text=question")
    return found


def read_as(held_out: EvaluateSection | None, file: Path) -> TableFormat:
    """How a file is read that is of the same source as a run's held-out one; its own name says what format it has, where it does."""
    how = held_out.table_format() if held_out is not None else TableFormat()
    return how.model_copy(update={"format": None}) if {suffix.lower() for suffix in file.suffixes} & SUFFIXES.keys() else how


def mapped(held_out: EvaluateSection | None, file: Path, said: dict[str, str]) -> dict[str, str]:
    """Field → column: what somebody says, and of what the run file says that which is there. Raises `DataError`."""
    there = column_names(file, read_as(held_out, file)) or []
    usual = held_out.columns if held_out is not None else {}
    return {**{field: column for field, column in usual.items() if column in there}, **said}
