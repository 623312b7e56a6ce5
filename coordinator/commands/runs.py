"""`fedcoord run …`."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedcybgd.coordinator.commands.export_directory import claim, write_card
from fedcybgd.coordinator.commands.run_file import read_run_file
from fedcybgd.coordinator.commands.run_view import draw, members_in_words
from fedcybgd.coordinator.operator import CoordinatorAway, Operator, OperatorError
from fedcybgd.shared.contract.manifests import ExportView
from fedcybgd.shared.files.paths import UnsafeName, inside
from fedcybgd.shared.host.terminal import Terminal

app = typer.Typer(no_args_is_help=True, help="Create, steer, watch and export runs.")
terminal = Terminal()
Run = Annotated[str, typer.Argument(help="Name or id of the run.")]
Anyway = Annotated[bool, typer.Option("--anyway", help="Count all agents in from the start, whether they are there or not.")]
Json = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]
FINAL = ("completed", "failed", "cancelled")


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="The run file (YAML).", exists=True, dir_okay=False)],
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    anyway: Anyway = False,
) -> None:
    """Create a run from a run file; its blocks and its head are prepared."""
    operator = Operator()
    run = create_run(operator, file)
    terminal.say(f"run {run['name']} ({run['id']}): {run['rounds_total']} rounds over {len(run['blocks'])} blocks")
    for note in run["notes"]:
        terminal.say(f"note: {note}")
    if not start:
        return
    try:
        view = operator.post(f"/runs/{run['id']}/start", {"anyway": anyway})
    except CoordinatorAway:
        raise  # nobody knows whether it has started
    except OperatorError as error:
        operator.post(f"/runs/{run['id']}/cancel")
        raise OperatorError(f"run {run['name']} was not started, and is cancelled: its name is free again. {error.message}") from error
    say_who(operator, view)


def create_run(operator: Operator, file: Path) -> Any:
    """Upload the held-out file, create the run and wait until it is prepared."""
    spec = read_run_file(file)
    if spec.evaluate is not None and spec.evaluate.digest is None:
        held_out = file.parent / spec.evaluate.held_out
        if not held_out.is_file():
            raise OperatorError(f"{file}: evaluate.held_out: there is no file {held_out}")
        uploaded = spec.evaluate.model_copy(update={"digest": operator.upload_held_out(held_out)})
        spec = spec.model_copy(update={"evaluate": uploaded})
    run = operator.post("/runs", spec.model_dump(mode="json"))
    run = operator.wait(lambda: operator.get(f"/runs/{run['id']}"), lambda r: r["prepared"] or r["state"] in FINAL)
    if run["state"] == "failed":
        raise OperatorError(f"run {run['name']} could not be prepared: {run['reason']}")
    return run


@app.command(name="start")
def begin(run: Run, anyway: Anyway = False) -> None:
    """Open the first round with the agents that are there; say who takes part, and who does not yet."""
    operator = Operator()
    say_who(operator, operator.post(f"/runs/{run}/start", {"anyway": anyway}))


def say_who(operator: Operator, view: dict[str, Any]) -> None:
    """Who takes part in a run that has just begun, and who does not yet."""
    terminal.say(f"run {view['name']} is {view['state']}; {len(view['participants'])} agents take part")
    for line in members_in_words(operator.get(f"/runs/{view['id']}/readiness"), view["participants"]):
        terminal.say(line)


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
def status(run: Run, as_json: Json = False) -> None:
    """Where a run stands."""
    operator = Operator()
    view = operator.get(f"/runs/{run}")
    if as_json:
        typer.echo(json.dumps(view, indent=2))
        return
    terminal.print(draw(view))
    if view["state"] not in FINAL:
        for line in members_in_words(operator.get(f"/runs/{view['id']}/readiness"), view["participants"], absent_only=True):
            terminal.say(line)


@app.command()
def watch(run: Run) -> None:
    """Follow a run until it ends; leave with Ctrl-C, the run goes on."""
    operator = Operator()
    with Live(console=terminal, refresh_per_second=4) as live:
        operator.notice = lambda text: live.update(Text(text, "yellow"))
        while True:
            view = operator.patiently(lambda: operator.get(f"/runs/{run}"))
            live.update(draw(view))
            if view["state"] in FINAL and not view["pending_jobs"]:
                break
            time.sleep(0.5)
    if view["state"] != "completed":
        raise typer.Exit(1)


@app.command(name="list")
def list_runs(as_json: Json = False) -> None:
    """All runs, newest first."""
    runs = Operator().get("/runs")
    if as_json:
        typer.echo(json.dumps(runs, indent=2))
        return
    table = Table("name", "id", "model", "state", "rounds", "created")
    for run in runs:
        rounds = f"{run['rounds_done']} of {run['rounds_total']}"
        table.add_row(run["name"], run["id"], run["model"], run["state"], rounds, run["created_at"][:19])
    terminal.table(table)


@app.command()
def export(
    run: Run,
    directory: Annotated[Path, typer.Argument(help="Where to; made if it is not there.", file_okay=False)],
    force: Annotated[bool, typer.Option("--force", help="Write over what another run or somebody else left there.")] = False,
) -> None:
    """Write the run's present model as a directory that transformers loads."""
    operator = Operator()
    made_by = operator.get(f"/runs/{run}")
    claim(directory, made_by, force)
    view = export_run(operator, made_by["id"], directory)
    write_card(directory, made_by, view["after_rounds"], view["files"])
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
            fetch = partial(operator.download, f"/runs/{run}/exports/{export_id}/{file.name}", target, file.digest, file.size)
            operator.patiently(fetch)
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror or error}; choose another directory") from error
    return view.model_dump()


def _first(error: ValidationError | UnsafeName) -> str:
    if isinstance(error, UnsafeName):
        return error.message
    problem = error.errors()[0]
    return f"{'.'.join(str(p) for p in problem['loc'])}: {problem['msg']}"
