"""`fedcoord run track`: the curves of a run in TensorBoard, MLflow or Weights & Biases."""

from pathlib import Path
from typing import Annotated

import typer

from fedcybgd.client.client import Client
from fedcybgd.client.trackers.base import Tracker
from fedcybgd.client.trackers.mlflow import MLflow
from fedcybgd.client.trackers.tensorboard import TensorBoard
from fedcybgd.client.trackers.wandb import WandB
from fedcybgd.coordinator.commands.completing import Run
from fedcybgd.coordinator.commands.output import Facts, Json, say_json
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.host.terminal import Terminal

EVERY_S = 2.0
terminal = Terminal()


def track(
    run: Run,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Directory for TensorBoard's event files; needs '.\\[tensorboard]'.", file_okay=False)
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="URI of MLflow: of a server, or as in sqlite:///mlflow.db; needs '.\\[mlflow]'.", metavar="URI")
    ] = None,
    wandb: Annotated[str | None, typer.Option(help="Project of Weights & Biases; needs '.\\[wandb]'.", metavar="PROJECT")] = None,
    experiment: Annotated[str, typer.Option(help="Of MLflow: the experiment that the run is put into.")] = "fedcybgd",
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Recall and F1 of each label of a classifier, too.")] = True,
    once: Annotated[bool, typer.Option("--once", help="Write what there is so far, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's scores, losses, bytes and run file into a tracker, and go on until it ends; what is there is not written again."""
    trackers: list[Tracker] = []
    if tensorboard is not None:
        trackers.append(TensorBoard(tensorboard))
    if mlflow is not None:
        trackers.append(MLflow(mlflow, experiment))
    if wandb is not None:
        trackers.append(WandB(wandb))
    if not trackers:
        raise typer.BadParameter("say where to: --tensorboard, --mlflow or --wandb")
    view, written = Client().runs.track(run, *trackers, follow=not once, labels=labels, every_s=EVERY_S)
    if as_json:
        say_json(Facts, {"run": view.name, "run_id": view.id, "state": view.state, "rounds_done": view.rounds_done, "points": written})
    else:
        terminal.say(
            f"run {view.name} ({view.id}) is {view.state}, {counted(view.rounds_done, 'round')} done: {counted(written, 'point')} written"
        )
