"""`fedcoord held-out …`."""

from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.given import CoordinatorCommands
from fedcybgd.coordinator.commands.output import Json, Yes, be_sure, moment, say_deleted, say_json
from fedcybgd.shared.contract.operators import HeldOutView
from fedcybgd.shared.contract.sizes import in_units
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, help="List and delete held-out files.")
terminal = Terminal()


@app.command(name="list")
def list_files(as_json: Json = False) -> None:
    """All held-out files, the newest first, with the runs that are scored on them."""
    files = list(Client().held_out.list())
    if as_json:
        say_json(list[HeldOutView], files)
        return
    table = Table("digest", "name", "size", "uploaded", "runs")
    for file in files:
        more = f" and {file.number_of_runs - len(file.runs)} more" if file.number_of_runs > len(file.runs) else ""
        table.add_row(file.digest, file.name, in_units(file.size), moment(file.created_at), ", ".join(file.runs) + more)
    terminal.table(table)


@app.command()
def delete(
    digest: Annotated[str, typer.Argument(help="Its digest, as `fedcoord held-out list` shows it.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete a held-out file that no run is scored on."""
    client = Client()
    client.health()
    be_sure(f"Held-out file {digest} will be gone here.", yes)
    client.held_out.delete(digest)
    say_deleted("held-out file", digest[:12], digest, as_json)
