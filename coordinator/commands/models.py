"""`fedcoord models …`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.output import Json, Yes, be_sure, say_deleted, say_json
from fedcybgd.shared.contract.operators import name_of
from fedcybgd.shared.contract.views import ModelView
from fedcybgd.shared.host.terminal import Terminal

app = typer.Typer(no_args_is_help=True, help="Add, list and delete base models.")
terminal = Terminal()


@app.command()
def add(
    source: Annotated[
        str, typer.Argument(help="A directory on the coordinator's machine, or a hub id: owner/name or owner/name@revision.")
    ],
    name: Annotated[str | None, typer.Option(help="How runs call it; default: the last part of the source.")] = None,
    as_json: Json = False,
) -> None:
    """Split a model into blocks and store them. Only safetensors weights; never remote code."""
    client = Client()
    path = Path(source).expanduser()
    chosen = name or name_of(str(path.resolve()) if path.exists() else source)
    begun = client.models.add(source, chosen, wait_s=0)
    with terminal.status(f"adding {chosen}"):
        model = client.models.wait(begun.name)
    show(model, as_json)


@app.command(name="list")
def list_models(as_json: Json = False) -> None:
    """All models."""
    models = list(Client().models.list())
    if as_json:
        say_json(list[ModelView], models)
        return
    table = Table("name", "state", "parameters", "blocks", "source")
    for model in models:
        table.add_row(model.name, model.state, f"{model.num_parameters:,}", str(len(model.blocks)), model.source)
    terminal.table(table)


@app.command(name="show")
def show_model(name: str, as_json: Json = False) -> None:
    """One model with its blocks."""
    show(Client().models.get(name), as_json)


@app.command()
def delete(name: str, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a model that no run is of."""
    client = Client()
    model = client.models.get(name)
    be_sure(f"Model {model.name} ({model.id}), from {model.source}, will be gone here.", yes)
    client.models.delete(model.id)
    say_deleted("model", model.name, model.id, as_json)


def show(model: ModelView, as_json: bool = False) -> None:
    if as_json:
        say_json(ModelView, model)
        return
    terminal.say(f"{model.name}: {model.num_parameters:,} parameters")
    table = Table("block", "kind", "parameters", "MB", "digest")
    for block in model.blocks:
        table.add_row(block.name, block.kind, f"{block.num_parameters:,}", f"{block.size / 1e6:.1f}", block.digest)
    terminal.table(table)
    if model.reason:
        terminal.say(model.reason)
    if model.left_out:
        terminal.say(f"left out, as the model does without: {', '.join(model.left_out[:10])}")
