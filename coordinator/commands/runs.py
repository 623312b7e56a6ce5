"""`fedcoord run …`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.live import Live
from rich.table import Table

from coordinator.commands.run_view import draw
from coordinator.domain.run_file import parse_run_file
from coordinator.operator import Operator, OperatorError
from shared.paths import UnsafeName, inside
from shared.protocol import ExportView
from shared.terminal import Terminal

app = typer.Typer(no_args_is_help=True, help="Create, steer, watch and export runs.")
terminal = Terminal()
Run = Annotated[str, typer.Argument(help="Name or id of the run.")]
FINAL = ("completed", "failed", "cancelled")


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="The run file (YAML).", exists=True, dir_okay=False)],
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
) -> None:
    """Create a run from a run file; its blocks and its head are prepared."""
    run = create_run(Operator(), file)
    terminal.say(f"run {run['name']} ({run['id']}): {run['rounds_total']} rounds over {len(run['blocks'])} blocks")
    for note in run["notes"]:
        terminal.say(f"note: {note}")
    if start:
        begin(run["id"])


def create_run(operator: Operator, file: Path) -> Any:
    """Upload the held-out file, create the run and wait until it is prepared."""
    spec = parse_run_file(file.read_text(), str(file))
    if spec.evaluate is not None and spec.evaluate.digest is None:
        held_out = file.parent / spec.evaluate.held_out
        if not held_out.is_file():
            raise OperatorError(f"{file}: evaluate.held_out: there is no file {held_out}")
        spec.evaluate.digest = operator.upload_held_out(held_out)
    run = operator.post("/runs", spec.model_dump(mode="json"))
    run = operator.wait(lambda: operator.get(f"/runs/{run['id']}"), lambda r: r["prepared"] or r["state"] in FINAL)
    if run["state"] == "failed":
        raise OperatorError(f"run {run['name']} could not be prepared: {run['reason']}")
    return run


@app.command(name="start")
def begin(run: Run) -> None:
    """Fix who takes part, and open the first round."""
    _steer(run, "start")


@app.command()
def pause(run: Run) -> None:
    """Begin no further round; what is being trained is finished and applied."""
    _steer(run, "pause")


@app.command()
def resume(run: Run) -> None:
    """Go on with a paused run."""
    _steer(run, "resume")


@app.command()
def cancel(run: Run) -> None:
    """End a run for good; its model so far can still be exported."""
    _steer(run, "cancel")


def _steer(run: str, verb: str) -> None:
    view = Operator().post(f"/runs/{run}/{verb}")
    terminal.say(f"run {view['name']} is {view['state']}")


@app.command()
def status(run: Run) -> None:
    """Where a run stands."""
    terminal.print(draw(Operator().get(f"/runs/{run}")))


@app.command()
def watch(run: Run) -> None:
    """Follow a run until it ends; leave with Ctrl-C, the run goes on."""
    operator = Operator()
    with Live(console=terminal, refresh_per_second=4) as live:
        while True:
            view = operator.get(f"/runs/{run}")
            live.update(draw(view))
            if view["state"] in FINAL and not view["pending_jobs"]:
                break
            time.sleep(0.5)
    if view["state"] != "completed":
        raise typer.Exit(1)


@app.command(name="list")
def list_runs() -> None:
    """All runs, newest first."""
    table = Table("name", "id", "model", "state", "rounds", "created")
    for run in Operator().get("/runs"):
        rounds = f"{run['rounds_done']} of {run['rounds_total']}"
        table.add_row(run["name"], run["id"], run["model"], run["state"], rounds, run["created_at"][:19])
    terminal.table(table)


@app.command()
def export(
    run: Run,
    directory: Annotated[Path, typer.Argument(help="Where to; made if it is not there.", file_okay=False)],
) -> None:
    """Write the run's present model as a directory that transformers loads."""
    view = export_run(Operator(), run, directory)
    terminal.say(f"model after {view['after_rounds']} rounds in {directory}: {', '.join(f['name'] for f in view['files'])}")


def export_run(operator: Operator, run: str, directory: Path) -> Any:
    """Have the export made and fetch its files. What the answer names lies in `directory` itself, or nothing is written at all."""
    export_id = operator.post(f"/runs/{run}/exports")["export_id"]
    found = operator.wait(lambda: operator.get(f"/runs/{run}/exports/{export_id}"), lambda v: v["ready"])
    try:
        view = ExportView.model_validate(found)
        targets = [(file, inside(directory, file.name)) for file in view.files]
    except (ValidationError, UnsafeName) as error:
        raise OperatorError(f"{operator.url} names files that no export has; nothing was written: {_first(error)}") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, target in targets:
            operator.download(f"/runs/{run}/exports/{export_id}/{file.name}", target, file.digest, file.size)
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror or error}; choose another directory") from error
    return view.model_dump()


def _first(error: ValidationError | UnsafeName) -> str:
    if isinstance(error, UnsafeName):
        return error.message
    problem = error.errors()[0]
    return f"{'.'.join(str(p) for p in problem['loc'])}: {problem['msg']}"
