"""Settings of the coordinator on this machine, as options and the environment give them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand
from typer.models import CommandFunctionType

from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import problem_in_words
from fedcybgd.shared.host.program import options_in_words
from fedcybgd.shared.host.variables import without_effect as told_of

PREFIX = "FEDCOORD_"
OF_CLIENTS = "URL", "OPERATOR_KEY"
"""What commands on any machine are told by variables of the same prefix"""
LINK = "; Kubernetes sets it where a Service is called fedcoord: call that otherwise, or set enableServiceLinks: false"
Home = Annotated[Path | None, typer.Option(help="Directory of database and blobs (FEDCOORD_HOME).")]


class SettingsInvalid(FedError):
    code = "settings_invalid"


def settings_of(**given: Any) -> Settings:
    """Options go before variables. Raises `typer.BadParameter` for an option, `SettingsInvalid`, which names each wrong variable, for the rest."""
    options = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**options)
    except ValidationError as error:
        for e in error.errors():
            if (option := e["loc"][0]) in options:
                raise typer.BadParameter(problem_in_words(e), param_hint=f"'--{str(option).replace('_', '-')}'") from error
        raise SettingsInvalid(", and ".join(_of_variable(e) for e in error.errors())) from error


def _of_variable(e: Any) -> str:
    link = LINK if str(e["input"]).startswith("tcp://") else ""
    return f"{PREFIX}{'_'.join(str(p) for p in e['loc']).upper()}: {problem_in_words(e)}{link}"


def without_effect(variables: Iterable[str]) -> list[str]:
    """A line for each variable that looks like a setting and is none."""
    return told_of(variables, PREFIX, [name.upper() for name in Settings.model_fields], OF_CLIENTS)


class CoordinatorCommand(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with options_in_words():
            return super().parse_args(ctx, args)


class CoordinatorCommands(typer.Typer):
    """`fedcoord`, or a group of its commands."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        return super().command(name, **{"cls": CoordinatorCommand, **more})
