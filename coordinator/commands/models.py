"""`fedcoord models …`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedcybgd.coordinator.operator import Operator, OperatorError
from fedcybgd.shared.host.terminal import Terminal

app = typer.Typer(no_args_is_help=True, help="Add and list base models.")
terminal = Terminal()


@app.command()
def add(
    source: Annotated[
        str, typer.Argument(help="A directory on the coordinator's machine, or a hub id: owner/name or owner/name@revision.")
    ],
    name: Annotated[str | None, typer.Option(help="How runs call it; default: the last part of the source.")] = None,
) -> None:
    """Split a model into blocks and store them. Only safetensors weights; never remote code."""
    operator = Operator()
    path = Path(source).expanduser()
    if path.exists():
        source = str(path.resolve())
    chosen = name or re.sub(r"[^A-Za-z0-9._-]", "-", source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0])
    operator.post("/models", {"name": chosen, "source": source})
    with terminal.status(f"adding {chosen}"):
        model = operator.wait(lambda: operator.get(f"/models/{chosen}"), lambda m: m["state"] != "adding")
    if model["state"] == "failed":
        raise OperatorError(f"{source} was not added: {model['reason']}")
    show(model)


@app.command(name="list")
def list_models() -> None:
    """All models."""
    table = Table("name", "state", "parameters", "blocks", "source")
    for model in Operator().get("/models"):
        table.add_row(model["name"], model["state"], f"{model['num_parameters']:,}", str(len(model["blocks"])), model["source"])
    terminal.table(table)


@app.command(name="show")
def show_model(name: str) -> None:
    """One model with its blocks."""
    show(Operator().get(f"/models/{name}"))


def show(model: dict[str, Any]) -> None:
    terminal.say(f"{model['name']}: {model['num_parameters']:,} parameters")
    table = Table("block", "kind", "parameters", "MB", "digest")
    for block in model["blocks"]:
        table.add_row(block["name"], block["kind"], f"{block['num_parameters']:,}", f"{block['size'] / 1e6:.1f}", block["digest"][:12])
    terminal.table(table)
    if model["reason"]:
        terminal.say(model["reason"])
    if model["left_out"]:
        terminal.say(f"left out, as the model does without: {', '.join(model['left_out'][:10])}")
