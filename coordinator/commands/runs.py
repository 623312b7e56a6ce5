"""`fedcoord run …`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.client.connection import DAY_S
from fedcybgd.client.errors import ClientError, CoordinatorAway, RunStopped
from fedcybgd.client.runs import has_ended
from fedcybgd.coordinator.commands import score_table, tracking
from fedcybgd.coordinator.commands.completing import Agent, Run
from fedcybgd.coordinator.commands.following import EVERY_S, followed
from fedcybgd.coordinator.commands.given import CoordinatorCommands
from fedcybgd.coordinator.commands.model_version import Version, model_version
from fedcybgd.coordinator.commands.new_file import Force, check_free, new_file
from fedcybgd.coordinator.commands.output import Facts, Json, Yes, be_sure, moment, say_deleted, say_json, say_line
from fedcybgd.coordinator.commands.run_view import draw, members_in_words
from fedcybgd.shared.contract.manifests import ExportView
from fedcybgd.shared.contract.provenance import fingerprint
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import EvaluationView, LabelScoresView, RunSummary, RunView
from fedcybgd.shared.contract.words import FINAL, ExportForm
from fedcybgd.shared.host.exits import Exit
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, help="Create, steer, watch and export runs.")
terminal = Terminal()
Anyway = Annotated[bool, typer.Option("--anyway", help="Count all agents in from the start, whether they are there or not.")]
Watched = Annotated[bool, typer.Option("--watch", help="Follow it until it ends, as `run watch` does.")]


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="The run file (YAML).", exists=True, dir_okay=False)],
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    anyway: Anyway = False,
    watched: Watched = False,
    as_json: Json = False,
) -> None:
    """Create a run from a run file; its blocks and its head are prepared."""
    if watched and not start:
        raise typer.BadParameter("--watch is for a run that is started: add --start")
    client = Client()
    run = client.runs.create(file)
    if as_json and not start:
        say_json(RunView, run)
    elif not as_json:
        terminal.say(f"run {run.name} ({run.id}): {counted(run.rounds_total, 'round')} over {counted(len(run.blocks), 'block')}")
        for note in run.notes:
            terminal.say(f"note: {note}")
    if not start:
        return
    try:
        view = client.runs.start(run.id, anyway=anyway)
    except CoordinatorAway:
        raise  # nobody knows whether it has started
    except ClientError as error:
        client.runs.cancel(run.id)
        raise RunStopped(f"run {run.name} was not started, and is cancelled: its name is free again. {error}") from error
    _begun(client, view, watched, as_json)


@app.command()
def anchor(
    run: Run,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    anyway: Anyway = False,
    as_json: Json = False,
) -> None:
    """Create the run that trains the head of another alone, as often on as many rows: what that one has to beat."""
    client = Client()
    made = client.runs.anchor(run)
    if as_json and not start:
        say_json(RunView, made)
    elif not as_json:
        terminal.say(f"run {made.name} ({made.id}), the anchor of {made.anchor_of}: {counted(made.rounds_total, 'visit')}")
        terminal.say(f"agents train it whose owners let a run of that name use their rows (`runs` in agent.toml: {made.name})")
    if start:
        say_who(client, client.runs.start(made.id, anyway=anyway), as_json)


@app.command(name="start")
def begin(run: Run, anyway: Anyway = False, watched: Watched = False, as_json: Json = False) -> None:
    """Open the first round with the agents that are there; say who takes part, and who does not yet."""
    client = Client()
    _begun(client, client.runs.start(run, anyway=anyway), watched, as_json)


def _begun(client: Client, view: RunView, watched: bool, as_json: bool) -> None:
    """Say who takes part, and follow the run if that is asked for; then JSON has all of it in its lines."""
    if not (watched and as_json):
        say_who(client, view, as_json)
    if watched:
        watch(view.id, as_json)


def say_who(client: Client, view: RunView, as_json: bool) -> None:
    """Who takes part in a run that has just begun, and who does not yet."""
    if as_json:
        say_json(RunView, view)
        return
    terminal.say(
        f"run {view.name} is {view.state}; {counted(view.participant_count, 'agent')} {'takes' if view.participant_count == 1 else 'take'} part"
    )
    for line in members_in_words(list(client.runs.members(view.id))):
        terminal.say(line)


@app.command()
def pause(run: Run, as_json: Json = False) -> None:
    """Begin no further round; what is being trained is finished and applied."""
    _say_state(Client().runs.pause(run), as_json)


@app.command()
def resume(run: Run, as_json: Json = False) -> None:
    """Go on with a paused run."""
    _say_state(Client().runs.resume(run), as_json)


@app.command()
def cancel(run: Run, as_json: Json = False) -> None:
    """End a run for good; its model so far can still be exported."""
    _say_state(Client().runs.cancel(run), as_json)


@app.command()
def delete(run: Run, yes: Yes = False, as_json: Json = False) -> None:
    """Delete all that is kept of a run that has ended: its model, its history, its scores. What was exported elsewhere stays."""
    client = Client()
    view = client.runs.get(run)
    be_sure(
        f"Run {view.name} ({view.id}) of {moment(view.created_at)}, {view.state} after {counted(view.rounds_done, 'round')}, will be gone.",
        yes,
    )
    client.runs.delete(view.id)
    say_deleted("run", view.name, view.id, as_json)


@app.command()
def rollback(
    run: Run,
    rounds: Annotated[int | None, typer.Argument(help="After how many rounds; 0: as it was prepared.", min=0)] = None,
    best: Annotated[bool, typer.Option("--best", help="Instead of a number: when it scored best on the held-out rows.")] = False,
    as_json: Json = False,
) -> None:
    """Take the model back to what it was after some rounds; the run is paused, and `resume` goes on from there."""
    if (rounds is None) != best:
        raise typer.BadParameter("say after how many rounds, or --best")
    _say_state(Client().runs.rollback(run, rounds, best=best), as_json, why=True)


@app.command()
def without(run: Run, agent: Agent, as_json: Json = False) -> None:
    """Take an agent's deltas out of the model; what others built on them is trained again. The run is paused; `resume` goes on."""
    _say_state(Client().runs.without(run, agent), as_json, why=True)


def _say_state(view: RunView, as_json: bool, why: bool = False) -> None:
    if as_json:
        say_json(RunView, view)
    else:
        terminal.say(f"run {view.name} is {view.state}" + (f": {view.reason}" if why else ""))


@app.command()
def status(run: Run, as_json: Json = False) -> None:
    """Where a run stands."""
    client = Client()
    view = client.runs.get(run)
    if as_json:
        say_json(RunView, view)
        return
    terminal.print(draw(view))
    if view.state not in FINAL:
        for line in members_in_words(list(client.runs.members(view.id)), absent_only=True):
            terminal.say(line)


@app.command()
def scores(
    run: Run,
    labels: Annotated[bool, typer.Option("--labels", help="Label by label, those of the lowest recall first.")] = False,
    after: Annotated[
        int | None,
        typer.Option(help="With --labels: after how many rounds; default: of the model that the run ended with, or the newest.", min=0),
    ] = None,
    most: Annotated[int, typer.Option(help="With --labels: how many.", min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """Every held-out score, each with what it had cost by then; or one of them label by label."""
    client = Client()
    found = list(client.runs.evaluations(run)) if after is None or not labels else []
    made = [score.after_rounds for score in found if score.loss is not None]
    if labels and (after is not None or made):
        place, note = (after, None) if after is not None else score_table.last_scored(client.runs.get(run), made)
        by_label = client.runs.label_scores(run, place, limit=most)
        if as_json:
            say_json(LabelScoresView, by_label)
        else:
            terminal.table(score_table.of_labels(by_label))
            if note is not None:
                terminal.say(f"note: {note}")
    elif as_json:
        say_json(list[EvaluationView], found)
    elif found:
        terminal.table(score_table.scores(found, client.runs.get(run).anchor, shown=len(found)))
    else:
        terminal.say("no score yet")


@app.command()
def watch(
    run: Run, as_json: Annotated[bool, typer.Option("--json", help="A line of JSON whenever something has changed.")] = False
) -> None:
    """Follow a run until it ends, also over restarts of the coordinator; leave with Ctrl-C, the run goes on. Into a file: a line for each round."""
    client = Client()
    view = _told(client, run) if as_json else followed(client, run, terminal, away_s=DAY_S)
    if not (as_json or terminal.is_terminal):
        terminal.print(draw(view))
    if view.state != "completed":
        raise typer.Exit(Exit.FAILED)


def _told(client: Client, run: str) -> RunView:
    """Say how the run is, as often as it is another way; the last one."""
    said: RunView | None = None
    while True:
        view = client.connection.patiently(lambda: client.runs.get(run), limit=DAY_S)
        if said is None or view.model_copy(update={"seconds_left": said.seconds_left}) != said:
            say_line(RunView, view)
            said = view
        if has_ended(view):
            return view
        time.sleep(EVERY_S)


@app.command(name="list")
def list_runs(as_json: Json = False) -> None:
    """All runs, newest first."""
    runs = list(Client().runs.list())
    if as_json:
        say_json(list[RunSummary], runs)
        return
    table = Table("name", "id", "model", "state", "rounds", "created")
    for run in runs:
        table.add_row(run.name, run.id, run.model, run.state, f"{run.rounds_done} of {run.rounds_total}", moment(run.created_at))
    terminal.table(table)


@app.command()
def export(
    run: Run,
    directory: Annotated[Path, typer.Argument(help="Where to; made if it is not there.", file_okay=False)],
    form: Annotated[ExportForm, typer.Option("--format", help="merged: transformers loads it; peft: adapters alone, for peft.")] = "merged",
    version: Version = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what another run or somebody else left there.")] = False,
    as_json: Json = False,
) -> None:
    """Write the run's model as a directory that transformers loads: the present one, or an older one."""
    view = Client().runs.export(run, directory, form=form, version=model_version(version), force=force)
    if as_json:
        say_json(ExportView, view)
        return
    terminal.say(f"model after {view.after_rounds} rounds in {directory}: {', '.join(f.name for f in view.files)}")


app.command()(tracking.track)


@app.command()
def provenance(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", dir_okay=False)],
    names: Annotated[bool, typer.Option("--names", help="Name agents as they are called here, instead of by pseudonyms.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write how the present model came to be, signed by the coordinator; `fedcoord verify FILE` checks it."""
    check_free(output, force)
    made = Client().runs.provenance(run, names=names)
    with new_file(output, force) as file:
        file.write(made.model_dump_json(indent=2) + "\n")
    if as_json:
        say_json(Facts, {"versions": len(made.versions), "file": str(output), "signed_with": fingerprint(made.key)})
    else:
        terminal.say(f"{counted(len(made.versions), 'version')} in {output}, signed with {fingerprint(made.key)}")
