"""Which of a run's models is meant: the option `--version`."""

from typing import Annotated

import typer

from fedcybgd.client.exports import ModelVersion

Version = Annotated[
    str | None, typer.Option(metavar="ROUNDS|best", help="As it was after so many rounds, or when it scored best; default: as it is.")
]


def model_version(said: str | None) -> ModelVersion | None:
    if said is None:
        return None
    if said == "best":
        return "best"
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise typer.BadParameter(f"{said!r:.40} is no number of rounds; say 0 or more, or best", param_hint="--version")
    return int(said)
