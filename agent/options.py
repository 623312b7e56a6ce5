"""What the commands of `fedagent` have in common: options, and answers as JSON."""

import json
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]
HomeOption = Annotated[Path | None, typer.Option("--home", envvar="FEDAGENT_HOME", help="The agent's directory.")]


def say_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
