"""What the commands of `fedagent` have in common: options, and answers as JSON."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fedcybgd.shared.host.terminal import Terminal
from fedcybgd.shared.host.variables import without_effect

PREFIX = "FEDAGENT_"
VARIABLES = "HOME", "TOKEN"
"""What commands are told by variables of this prefix; all else is in agent.toml"""
Json = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]
HomeOption = Annotated[Path | None, typer.Option("--home", envvar="FEDAGENT_HOME", help="The agent's directory.")]


def say_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def warn_of_variables() -> None:
    """On standard error: what a program reads is the answer alone."""
    for line in without_effect(os.environ, PREFIX, VARIABLES):
        Terminal(stderr=True).say(f"warning: {line}", "yellow")
