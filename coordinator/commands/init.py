"""`fedcoord init`: looks at held-out rows and a model, and writes a run file to start from."""

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, get_args

import typer

from fedcybgd.client.client import Client
from fedcybgd.client.models import name_of_directory
from fedcybgd.coordinator.commands import recipe_facts
from fedcybgd.coordinator.commands.columns import Column, columns_of
from fedcybgd.coordinator.commands.new_file import Force, check_free, new_file
from fedcybgd.coordinator.commands.output import Facts, Json, say_json
from fedcybgd.coordinator.domain.recipe import AGENTS, CORRECTED, RecipeTask, recipe
from fedcybgd.coordinator.domain.recipe_file import written_recipe
from fedcybgd.coordinator.domain.run_file import parse_run_file
from fedcybgd.coordinator.errors import Invalid, OptionInvalid
from fedcybgd.shared.contract.words import CLASSIFICATIONS, JsonObject
from fedcybgd.shared.host.terminal import Terminal

terminal = Terminal()
SHOWN = 5
"""Columns that are named at the most"""


def init(
    task: Annotated[RecipeTask, typer.Option(help=f"What the model is to learn: {', '.join(get_args(RecipeTask))}.", metavar="TASK")],
    data: Annotated[
        Path, typer.Option(help="Held-out rows: CSV, JSON Lines or Parquet. They stay with the coordinator.", exists=True, dir_okay=False)
    ],
    model: Annotated[str, typer.Option(help="A model directory on this machine, or the name of a model that the coordinator has.")],
    agents: Annotated[int, typer.Option(help="How many agents there will be.", min=1, max=10_000)] = AGENTS,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Rows as the agents have them, where they are on this machine: they are counted, and their labels too.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of all agents together; default: four for each held-out one.", min=1)] = None,
    labels: Annotated[int | None, typer.Option(help="How many labels, where not every one has a held-out row.", min=2, max=100_000)] = None,
    corrections: Annotated[
        bool,
        typer.Option(
            "--corrections", help="Visits also correct the layers that they do not train: better scores, for more memory, time and bytes."
        ),
    ] = False,
    column: Column = [],  # noqa: B006 - typer reads it
    name: Annotated[str | None, typer.Option(help="Of the run; default: the data file's.")] = None,
    out: Annotated[Path, typer.Option(help="The run file to write.", dir_okay=False)] = Path("run.yaml"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a run file with values to start from, chosen by the held-out rows, the model and the number of agents."""
    check_free(out, force)
    if task not in CLASSIFICATIONS and labels is not None:
        raise OptionInvalid(f"--labels: {task} has no labels")
    if corrections and task not in CORRECTED:
        raise OptionInvalid(
            f"--corrections: they were measured with {' and '.join(CORRECTED)} alone, not with {task}; a run file may have them all the same"
        )
    directory, called, config = _model(model)
    count = recipe_facts.counting(task, directory, config)
    where = os.path.relpath(data.resolve(), out.resolve().parent)
    found = recipe_facts.rows_of(data, task, columns_of(column), labels, count, where, rows, train)
    outline = recipe_facts.model_of(called, config, task, found.num_labels or None)
    values = recipe(name or _plain(data), task, outline, found, agents, corrections)
    text = written_recipe(values, outline, found, agents, directory is not None)
    parse_run_file(text, str(out))
    with new_file(out, force) as file:
        file.write(text)
    if as_json:
        say_json(Facts, {"file": str(out), "held_out_rows": found.held_out, "labels": found.num_labels, "layers": outline.layers})
        return
    terminal.say(
        f"{out}: {found.held_out:,} held-out rows{f', {found.num_labels} labels' if found.num_labels else ''}; {outline.layers} layers"
    )
    if found.unused:
        others = f" and {len(found.unused) - SHOWN} more" if len(found.unused) > SHOWN else ""
        terminal.say(f"note: nothing is read from {', '.join(map(repr, found.unused[:SHOWN]))}{others}; --column maps columns to fields")
    terminal.say("look through it, then:")
    commands = [("fedcoord", "plan", out), ("fedcoord", "run", "create", out)]
    if directory is not None:
        tried = ("fedcoord", "try", out, "--data", train or "ROWS", "--model", directory)
        commands = [tried, ("fedcoord", "models", "add", directory), *commands]
    for command in commands:
        terminal.say(f"  {shlex.join(map(str, command))}")


def _model(model: str) -> tuple[Path | None, str, JsonObject]:
    """Its directory where it is one on this machine, how runs call it, its configuration."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path, name_of_directory(path), recipe_facts.config_of(path)
    if "/" in model or path.exists():
        raise OptionInvalid(f"--model {model}: there is no directory of that name, and no model of a coordinator is called so")
    view = Client().models.get(model)
    if view.state != "ready" or not view.config:
        raise Invalid(f"--model {model}: the model is {view.state}{f', {view.reason}' if view.reason else ''}")
    return None, view.name, view.config


def _plain(data: Path) -> str:
    stem = data.name.removesuffix(".gz").rpartition(".")[0] or data.name
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:90] or "run"
