"""Which column of a file supplies which field: the option `--column`."""

from typing import Annotated

import typer

from fedcybgd.coordinator.errors import Invalid

Column = Annotated[list[str], typer.Option(help="FIELD=COLUMN, where they differ: text=question. May be repeated.")]


def columns_of(said: list[str]) -> dict[str, str]:
    """Field → column."""
    found = dict(each.partition("=")[::2] for each in said)
    if wrong := [field for field, column in found.items() if not field or not column]:
        raise Invalid(f"--column {wrong[0]}: say FIELD=COLUMN, as in text=question")
    return found
