"""`fedcoord models …`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.client.uploading import UploadProgress
from fedcybgd.coordinator.commands.completing import Model
from fedcybgd.coordinator.commands.given import CoordinatorCommands
from fedcybgd.coordinator.commands.output import Json, Yes, be_sure, moment, say_deleted, say_json
from fedcybgd.shared.contract.model_uploads import ModelUploadEntry
from fedcybgd.shared.contract.views import ModelView
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, help="Add, upload, list and delete base models.")
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
    begun = client.models.add(source, name, wait_s=0)
    show(_added(client, begun.name, Terminal(stderr=True)), as_json)


@app.command()
def upload(
    directory: Annotated[
        Path,
        typer.Argument(
            help="A directory on this machine, with config.json, the tokenizer's files and *.safetensors.", exists=True, file_okay=False
        ),
    ],
    name: Annotated[str | None, typer.Option(help="How runs call it; default: the name of the directory.")] = None,
    as_json: Json = False,
) -> None:
    """Send a model of this machine to the coordinator, and add it there. Cut off, the same command goes on where it stopped."""
    client = Client()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Terminal(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        shown = {phase: progress.add_task(phase, total=None, visible=False) for phase in ("reading", "sending")}

        def told(far: UploadProgress) -> None:
            progress.update(shown[far.phase], completed=far.done, total=far.size, visible=True)

        begun = client.models.upload(directory, name, wait_s=0, told=told)
    show(_added(client, begun.name, console), as_json)


def _added(client: Client, name: str, console: Terminal) -> ModelView:
    """Waits for it, and says once what it waits for, where it does."""
    said = set()

    def told(model: ModelView) -> None:
        if model.reason and model.id not in said:
            said.add(model.id)
            console.say(f"{name} waits: {model.reason}")

    with console.status(f"adding {name}"):
        return client.models.wait(name, told=told)


@app.command()
def uploads(as_json: Json = False) -> None:
    """Uploads under way: what has arrived of models."""
    found = list(Client().models.uploads())
    if as_json:
        say_json(list[ModelUploadEntry], found)
        return
    table = Table("id", "name", "files", "arrived", "MB", "by", "touched")
    for one in found:
        table.add_row(
            one.id,
            one.name,
            str(one.number_of_files),
            str(one.arrived_files),
            f"{one.size / 1e6:.1f}",
            one.begun_by,
            moment(one.touched_at),
        )
    terminal.table(table)


@app.command()
def discard(
    upload_id: Annotated[str, typer.Argument(help="Its id, as `fedcoord models uploads` shows it.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Forget an upload, and what has arrived of it."""
    client = Client()
    upload = client.models.get_upload(upload_id)
    be_sure(f"What has arrived of model {upload.name} ({upload.id}) will be gone.", yes)
    client.models.discard_upload(upload.id)
    say_deleted("upload", upload.name, upload.id, as_json)


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
    for model in models:
        if model.reason:
            terminal.say(f"{model.name}: {model.reason}")


@app.command(name="show")
def show_model(name: Model, as_json: Json = False) -> None:
    """One model with its blocks."""
    show(Client().models.get(name), as_json)


@app.command()
def delete(name: Model, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a model that no run is of, also one that waits to be added."""
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
