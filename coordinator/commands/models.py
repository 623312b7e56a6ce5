"""`fedcoord models …`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from coordinator.operator import Operator, OperatorError

app = typer.Typer(no_args_is_help=True, help="Add and list base models.")
console = Console()


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
    with console.status(f"adding {chosen}"):
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
    console.print(table)


@app.command(name="show")
def show_model(name: str) -> None:
    """One model with its blocks."""
    show(Operator().get(f"/models/{name}"))


def show(model: dict[str, Any]) -> None:
    table = Table(
        "block",
        "kind",
        "parameters",
        "MB",
        "digest",
        title=f"{model['name']}: {model['num_parameters']:,} parameters",
        title_justify="left",
    )
    for block in model["blocks"]:
        table.add_row(block["name"], block["kind"], f"{block['num_parameters']:,}", f"{block['size'] / 1e6:.1f}", block["digest"][:12])
    console.print(table)
    if model["reason"]:
        console.print(model["reason"])
    if model["left_out"]:
        console.print(f"left out, as the model does without: {', '.join(model['left_out'][:10])}")
