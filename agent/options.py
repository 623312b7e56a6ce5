"""What the commands of `fedagent` have in common: options, and answers as JSON."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.models import CommandFunctionType

from fedcybgd.shared.host.program import options_in_words
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


class AgentCommand(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with options_in_words():
            return super().parse_args(ctx, args)


class AgentCommands(typer.Typer):
    """`fedagent`."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        return super().command(name, **{"cls": AgentCommand, **more})
