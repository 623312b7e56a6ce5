"""`fedcoord exports …`."""

from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.completing import Run
from fedcybgd.coordinator.commands.given import CoordinatorCommands
from fedcybgd.coordinator.commands.output import Json, Yes, be_sure, moment, say_deleted, say_json
from fedcybgd.shared.contract.run_views import ExportEntry
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, help="List and delete the exports of runs; `fedcoord run export` makes one.")
terminal = Terminal()


@app.command(name="list")
def list_exports(run: Run, as_json: Json = False) -> None:
    """The exports of a run, the newest first."""
    found = list(Client().runs.exports(run))
    if as_json:
        say_json(list[ExportEntry], found)
        return
    table = Table("id", "state", "asked for", "after rounds", "MB")
    for one in found:
        rounds = "" if one.after_rounds is None else str(one.after_rounds)
        table.add_row(one.export_id, one.state, moment(one.created_at), rounds, f"{sum(file.size for file in one.files) / 1e6:.1f}")
    terminal.table(table)


@app.command()
def delete(
    run: Run,
    export_id: Annotated[str, typer.Argument(help="Its id, as `fedcoord exports list` shows it.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete an export at the coordinator; what was fetched of it stays where it is."""
    client = Client()
    view = client.runs.get(run)
    be_sure(f"The export {export_id} of run {view.name} ({view.id}) will be gone there.", yes)
    client.runs.delete_export(view.id, export_id)
    say_deleted("export", view.name, export_id, as_json)
