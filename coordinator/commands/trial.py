"""`fedcoord try`: the whole federation on one machine, with real processes."""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from fedcybgd.client import run_files
from fedcybgd.client.client import Client
from fedcybgd.client.errors import DirectoryTaken, FileUnusable, RunStopped
from fedcybgd.client.held_out import check_held_out
from fedcybgd.coordinator.commands import trial_report
from fedcybgd.coordinator.commands.columns import Column, columns_of, mapped, read_as
from fedcybgd.coordinator.commands.following import followed
from fedcybgd.coordinator.commands.output import Json, say_json
from fedcybgd.coordinator.commands.trial_report import TrialReport
from fedcybgd.coordinator.domain.anchor import anchor_name
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Invalid, OptionInvalid
from fedcybgd.local.chaos import Chaos
from fedcybgd.local.federation import Federation
from fedcybgd.local.rows import Portion, TrialRows
from fedcybgd.local.split import Split
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import ModelView, RunView
from fedcybgd.shared.host import interrupt, machine
from fedcybgd.shared.host.terminal import Terminal

AGENTS = 6
MOST_AGENTS = 64
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+(@[\w./-]+)?")
READY_S = 120.0


AGENT_BYTES = 450_000_000
"""That a process with torch and the daemon beside it take before there is any model in them"""
PLACE_BYTES = 4 << 20
"""That databases and logs take at the least"""


class ModelNotGiven(Invalid):
    code = "model_not_given"
    usage = True


class TooLittleMemory(Invalid):
    """So many agents would make the machine end processes, and not only these."""

    code = "too_little_memory"


class TooLittleRoom(Invalid):
    """A disk that fills would have all processes wait for somebody to free space, who is not there."""

    code = "too_little_room"


def try_run(
    file: Annotated[
        Path, typer.Argument(metavar="RUN.yaml", help="The run file; `fedcoord init` writes one.", exists=True, dir_okay=False)
    ],
    data: Annotated[
        Path,
        typer.Option(help="Rows to train on: CSV, JSON Lines or Parquet. They are dealt out to the agents.", exists=True, dir_okay=False),
    ],
    model: Annotated[
        str | None, typer.Option(help="Directory of the base model, or a hub id; default: a directory of the name that the run file has.")
    ] = None,
    agents: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_AGENTS, help=f"How many; default: those that the run file names, as many as the column has values, or {AGENTS}."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Who gets which rows: iid (evenly), dirichlet:0.5 (unlike labels), column:NAME (by whose they are).")
    ] = "iid",
    column: Column = [],  # noqa: B006 - typer reads it
    images: Annotated[Path | None, typer.Option(help="Folder of the images that rows name by path.", exists=True, file_okay=False)] = None,
    anchor: Annotated[bool, typer.Option("--anchor", help="Train the head alone afterwards, as often: what the run has to beat.")] = False,
    chaos: Annotated[bool, typer.Option("--chaos", help="Kill agents while they train, and start them again.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write the model that the run ends with to this directory.", file_okay=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is in that directory.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep database, blobs, agents' homes and logs in this directory; default: nothing is left.", file_okay=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each training process; default: the processors are shared by those that train at once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try a run on this machine: a coordinator and agents as real processes, which are gone afterwards.

    Rows are dealt out by the seed of the run file: the same command gives the same rows to the same agents. Ctrl-C ends all of it.
    """  # fmt: skip
    terminal = Terminal(stderr=as_json)
    with interrupt.at_the_end():
        trial = _looked_through(file, data, model, agents, split, columns_of(column), images, threads)
        for directory in (export, keep):
            if directory is not None:
                _check_place(directory, force and directory is export)
        try:
            with _place(keep) as folder:
                report = _tried(trial, folder, terminal, anchor, chaos, export)
        except KeyboardInterrupt:
            left = "nothing of it is left" if keep is None else f"{keep} is kept"
            Terminal(stderr=True).say(f"stopped: its processes are ended, and {left}")
            raise
    report.kept = None if keep is None else str(keep)
    if as_json:
        say_json(TrialReport, report)
    else:
        trial_report.say(report, terminal)
    if report.run.state != "completed":
        raise RunStopped(f"run {report.run.name} is {report.run.state}: {report.run.reason or ''}", run=report.run.id)


@dataclass(frozen=True)
class Trial:
    """What is to be tried: looked through before any process is started."""

    file: Path
    spec: RunFile
    model: str
    rows: TrialRows
    split: Split
    agents: int | None
    """None: as many as the column of the split has values"""
    threads: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str] | None:
        return None if self.spec.agents == "all" else self.spec.agents


def _looked_through(
    file: Path, data: Path, model: str | None, agents: int | None, split: str, columns: dict[str, str], images: Path | None, threads: int | None
) -> Trial:  # fmt: skip
    """Raises `RunFileInvalid`, `FileUnusable`, `SplitInvalid`, `ModelNotGiven`."""
    spec, how = run_files.read_file(file), Split.parsed(split)
    notes = []
    if spec.evaluate is not None:
        held_out = file.parent / spec.evaluate.held_out
        check_held_out(held_out)
        if digest_of_file(held_out) == digest_of_file(data):
            notes.append("the rows are the held-out rows themselves: scores say how well they are remembered, and nothing of others")
    else:
        notes.append("the run file has no `evaluate`: nothing will be scored")
    if spec.agents != "all":
        if agents not in (None, len(spec.agents)):
            raise OptionInvalid(f"--agents {agents}: the run file names {counted(len(spec.agents), 'agent')}: {', '.join(spec.agents)}")
        agents = len(spec.agents)
    elif agents is None and how.kind != "column":
        agents = AGENTS
    rows = TrialRows(data, spec.task.spec, mapped(spec.evaluate, data, columns), read_as(spec.evaluate, data), images)
    return Trial(file, spec, _model(model, spec, file.parent), rows, how, agents, threads, notes)


def _model(said: str | None, spec: RunFile, beside: Path) -> str:
    if said is None:
        found = next((place for place in (beside / spec.model, Path(spec.model)) if place.is_dir()), None)
        if found is None:
            raise ModelNotGiven(
                f"the run file calls its model {spec.model}: say where that is, with --model DIRECTORY or --model OWNER/NAME"
            )
        said = str(found)
    elif not Path(said).expanduser().is_dir() and not HUB_ID.fullmatch(said):
        raise ModelNotGiven(f"--model {said}: there is no directory of that name, and it is no hub id (owner/name)")
    return said


def _check_place(directory: Path, force: bool) -> None:
    """Raises `DirectoryTaken`: nothing is written over that somebody may want; and `FileUnusable` before anything is trained that could not be written."""
    if not force and directory.exists() and any(directory.iterdir()):
        raise DirectoryTaken(f"{directory} is not empty; choose another directory")
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        if made:
            directory.rmdir()
    except OSError as error:
        raise FileUnusable(f"{directory}: {error.strerror or error}; choose another directory") from error


@contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="fedcoord-try-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _tried(trial: Trial, folder: Path, terminal: Terminal, anchor: bool, chaos: bool, export: Path | None) -> TrialReport:
    began, spec = time.monotonic(), trial.spec
    _check_room(trial, folder)
    for note in trial.notes:
        terminal.say(f"note: {note}", "yellow")
    with terminal.status("dealing out the rows"):
        portions = trial.rows.split(trial.split, trial.names, trial.agents, spec.seed, folder / "rows")
    trial_report.say_portions(portions, trial.split, terminal)
    _check_memory(len(portions))
    with Federation(folder) as federation:
        with terminal.status("starting the coordinator"):
            client = federation.start_coordinator()
        terminal.say(
            f"coordinator at {federation.coordinator.url}, pages at {federation.coordinator.url}/admin; key {federation.coordinator.key}"
        )
        with terminal.status("adding the model, block by block, and starting agents"):
            client.models.add(trial.model, spec.model, wait_s=0)
            _start(federation, portions, spec, trial.threads or _threads(spec, len(portions)))
            client.models.wait(spec.model, told=_not_without_room)
        with terminal.status("preparing the run"):
            run = client.runs.create(trial.file)
            _all_there(client, len(portions))
        unrest = Chaos(federation, spec.seed, terminal.say) if chaos else None

        def follow(run: RunView) -> RunView:
            client.runs.start(run.id)
            terminal.say(f"run {run.name}: {counted(run.rounds_total, 'round')} over {counted(len(run.blocks), 'block')}")
            return followed(client, run.id, terminal, look)

        def look(view: RunView) -> None:
            federation.check()
            if unrest is not None:
                unrest.look(view, time.monotonic())
            if view.state == "paused" and not view.waits_for_agents:
                raise RunStopped(f"run {view.name} is paused: {view.reason}", run=view.id, state=view.state)

        run = follow(run)
        if run.state == "completed" and anchor:
            follow(client.runs.anchor(run.id))
            run = client.runs.get(run.id)
        if run.state == "completed" and export is not None:
            with terminal.status("exporting the model"):
                client.runs.export(run.id, export, force=True)
        visits = list(client.runs.assignments(run.id))
    return TrialReport(
        run=run, agents={portion.name: portion.rows for portion in portions}, visits=len(visits), seconds=time.monotonic() - began,
        killed=unrest.killed if unrest is not None else [], export=None if export is None else str(export),
    )  # fmt: skip


def _check_room(trial: Trial, folder: Path) -> None:
    weights = Path(trial.model).expanduser().glob("*.safetensors")
    needed = PLACE_BYTES + trial.rows.path.stat().st_size + sum(file.stat().st_size for file in weights)
    if needed > (free := shutil.disk_usage(folder).free):
        raise TooLittleRoom(
            f"{folder}: {needed:,} bytes and more are needed there, and {free:,} are free; name another place by TMPDIR, or by --keep DIRECTORY"
        )


def _not_without_room(model: ModelView) -> None:
    if model.reason is not None:
        raise TooLittleRoom(f"model {model.name} waits, and nobody makes room here: {model.reason}")


def _check_memory(agents: int) -> None:
    available = machine.memory_available()
    if agents * AGENT_BYTES > available:
        most = max(1, available // AGENT_BYTES)
        raise TooLittleMemory(
            f"{agents} agents take {agents * AGENT_BYTES / 1e9:.1f} GB before there is a model in them, and {available / 1e9:.1f} are free here; "
            f"say --agents {most}"
        )


def _start(federation: Federation, portions: Sequence[Portion], spec: RunFile, threads: int) -> None:
    """All agents, some at a time: most of what a start takes is waiting. They tell their labels where the run file counts on that."""
    runs, told = [spec.name, anchor_name(spec.name)], spec.schedule.head_start == "class_means"

    def start(portion: Portion) -> None:
        images = portion.images if portion.images.exists() else None
        federation.start_agent(portion.name, portion.path, runs, threads, images, told)

    with ThreadPoolExecutor(max(2, machine.cores())) as pool:
        list(pool.map(start, portions))


def _threads(spec: RunFile, agents: int) -> int:
    """Of each training process, so that those of one round share the processors."""
    at_once = spec.schedule.wave if spec.method == "block-cycle" else agents
    return max(1, machine.cores() // max(1, min(at_once, agents)))


def _all_there(client: Client, agents: int) -> None:
    client.wait(lambda: list(client.agents.list()), lambda found: sum(one.state == "active" for one in found) == agents, timeout_s=READY_S)
