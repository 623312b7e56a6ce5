"""Weights & Biases: a run of a project there or, with WANDB_MODE=offline, in files that `wandb sync` sends later."""

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fedcybgd.client.errors import FileUnusable, TrackerFailed
from fedcybgd.client.trackers import wandb_sessions
from fedcybgd.client.trackers.base import Key, Point, Tracked, package, told
from fedcybgd.shared.files.paths import inside

EXTRA = "wandb"
STEP = "rounds"


class WandB:
    def __init__(self, project: str = "fedcybgd", entity: str | None = None, directory: Path | str = ".") -> None:
        """Its own files, and one that says which points it was told, lie in the folder `wandb` of `directory`."""
        self._project, self._entity, self._folder = project, entity, Path(directory) / "wandb"
        self._run: Any = None
        self._told: IO[str] | None = None

    def open(self, run: Tracked) -> set[Key]:
        wandb = package("wandb", EXTRA)
        file = inside(self._folder, f"fedcybgd-{run.id}.jsonl")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._told = file.open("a+", encoding="utf-8")
        except OSError as error:
            raise FileUnusable(f"{file}: {error.strerror or error}; choose another directory") from error
        try:
            fcntl.flock(self._told, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrackerFailed(f"somebody writes run {run.name} to Weights & Biases from {self._folder} already") from error
        with told("Weights & Biases"):
            points, kept = wandb_sessions.told_so_far(self._told, self._folder, run.id)
            wandb_sessions.wait_for_a_name(self._folder, run.id)
            # Only what the coordinator says of the run leaves: nothing of this machine, its programs or its code.
            quiet = wandb.Settings(
                console="off", disable_code=True, disable_git=True, silent=True, x_disable_machine_info=True, x_disable_meta=True,
                x_disable_stats=True,
            )  # fmt: skip
            self._run = wandb.init(
                project=self._project, entity=self._entity, id=run.id, name=run.name, resume="allow", config=dict(run.parameters),
                dir=str(self._folder.parent), settings=quiet,
            )  # fmt: skip
            # Scores come later than losses of later rounds: its own steps would not take them.
            self._run.define_metric(STEP, hidden=True)
            self._run.define_metric("*", step_metric=STEP)
            # Each point is a step there, and where W&B itself answers it says which one is next.
            kept = kept if self._run.offline else max(kept, self._run.starting_step)
            wandb_sessions.begin(self._told, Path(self._run.dir).parent.name, kept)
        return set(points[:kept])

    def write(self, points: Sequence[Point], tags: Mapping[str, str]) -> None:
        assert self._told is not None
        with told("Weights & Biases"):
            for point in points:
                self._told.write(json.dumps(point.key) + "\n")
                self._told.flush()  # before W&B can have kept it: what it has of those that stand here is seen when it is begun again
                self._run.log({STEP: point.step, point.name: point.value})
            self._run.config.update({f"fedcybgd.{name}": value for name, value in tags.items()}, allow_val_change=True)

    def close(self, state: str) -> None:
        if self._run is not None:
            with told("Weights & Biases"):
                self._run.finish(exit_code=int(state in ("failed", "cancelled")))
        if self._told is not None:
            self._told.close()
