"""How the commands write what the client gives: times, and whole answers as JSON."""

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer
from pydantic import TypeAdapter

from fedcybgd.shared.host.terminal import Terminal

T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
Facts = dict[str, str | int | float | bool | None]
"""What a command says of itself, where there is no answer of a coordinator"""


def be_sure(what: str, yes: bool) -> None:
    """Ask before something is gone for good. Where nobody can answer it is not done. Raises `typer.Abort`, `typer.BadParameter`."""
    if yes:
        return
    try:
        agreed = typer.confirm(f"{what} Go on?", err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        typer.echo(err=True)
        raise typer.BadParameter(
            "nobody is there to answer, so nothing was done; this does it without asking", param_hint="'--yes'"
        ) from None
    if not agreed:
        raise typer.Abort


def moment(at: datetime | None) -> str:
    """To the second, in UTC; empty where there is none."""
    return "" if at is None else at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds")


def say_json(kind: type[T], value: T) -> None:
    """The whole answer, for scripts."""
    typer.echo(json.dumps(TypeAdapter(kind).dump_python(value, mode="json"), indent=2))


def say_deleted(kind: str, name: str, id: str, as_json: bool) -> None:
    if as_json:
        say_json(Facts, {"deleted": kind, "name": name, "id": id})
    else:
        Terminal().say(f"{kind} {name} ({id}) is deleted")


def say_line(kind: type[T], value: T) -> None:
    """The same in one line, for programs that read as it comes."""
    typer.echo(json.dumps(TypeAdapter(kind).dump_python(value, mode="json")))
