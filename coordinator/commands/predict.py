"""`fedcoord predict`: what a fine-tuned model says of rows."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedcybgd.client.client import Client
from fedcybgd.client.exports import ModelVersion
from fedcybgd.coordinator.commands.columns import Column, columns_of, mapped, read_as
from fedcybgd.coordinator.commands.completing import RUNS
from fedcybgd.coordinator.commands.model_version import Version, model_version
from fedcybgd.coordinator.commands.new_file import Force, RowsFile, rows_file
from fedcybgd.coordinator.commands.output import Facts, say_json
from fedcybgd.coordinator.commands.prediction_tally import PredictionTally
from fedcybgd.coordinator.domain.run_file import EvaluateSection, RunFile
from fedcybgd.coordinator.errors import Invalid, OptionInvalid
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.provenance import CARD, FILE
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import JsonObject
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.files.tables import ASKED, Row, examples
from fedcybgd.shared.host import interrupt
from fedcybgd.shared.host.terminal import Terminal

terminal = Terminal()
NEW_TOKENS = 40


@dataclass(frozen=True)
class Asked:
    """A model that is asked, before its weights are there."""

    called: str
    spec: TaskSpec
    held_out: EvaluateSection | None
    """how the rows of its held-out file are read: others of the same source are alike"""
    directory: Path | None = None
    """None: that of an export that is yet to be fetched, of the run of this id"""
    run_id: str = ""


def predict(
    what: Annotated[
        str,
        typer.Argument(metavar="RUN|DIRECTORY", help="Name or id of a run, or a directory that `run export` wrote.", autocompletion=RUNS),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Rows: CSV, JSON Lines or Parquet. Labels or answers may be there; then they are compared.", exists=True, dir_okay=False
        ),
    ],
    version: Version = None,
    out: Annotated[Path | None, typer.Option(help="Write a line of JSON for each row to this file.", dir_okay=False)] = None,
    column: Column = [],  # noqa: B006 - typer reads it
    images: Annotated[Path | None, typer.Option(help="Folder of the images that rows name by path.", exists=True, file_okay=False)] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            min=1,
            max=100_000,
            help=f"Go on from prompts by so many tokens at the most; default: {NEW_TOKENS}, and where rows have a completion its loss instead.",
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each row; with --out these are in the file, and here is the summary.")
    ] = False,
) -> None:
    """Ask a run's model, or an exported one, about rows: labels with their probability, losses of texts, how prompts go on, or answers.

    A run's model is fetched into a temporary folder, which is gone afterwards.
    """  # fmt: skip
    with interrupt.at_the_end(), rows_file(out, force) as file:
        wanted = model_version(version)
        asked = _of_directory(what, version) if Path(what).expanduser().is_dir() else _of_run(what)
        if asked.spec.task != "causal-lm" and new_tokens is not None:
            raise OptionInvalid(f"--max-new-tokens: {asked.called} is a {asked.spec.task}, which writes no text")
        columns = mapped(asked.held_out, data, columns_of(column))
        rows = AskedRows(data, asked.spec, columns, read_as(asked.held_out, data), images)
        rows.check(new_tokens)
        with _weights(asked, wanted) as (directory, after_rounds):
            tally = _predict(asked, directory, rows, new_tokens, file, as_json and out is None)
    model = asked.called if after_rounds is None else f"{asked.called} after {counted(after_rounds, 'round')}"
    if not as_json:
        tally.show(terminal, model)
        if out is not None:
            terminal.say(f"all of them: {out}")
    elif out is not None:
        say_json(Facts, {"model": model, "task": asked.spec.task, "file": str(out), **tally.facts()})


def _of_directory(what: str, version: str | None) -> Asked:
    from fedcybgd.shared.models.prediction import spec_of

    directory = Path(what).expanduser()
    if version is not None:
        raise OptionInvalid(f"--version: {what} is a directory with one model; of a run there are several")
    card, spec = _read(directory / CARD), _run_file(directory)
    if card and card.get("after_rounds") is None:
        raise Invalid(f"{what} is an export whose files are not all there; run `fedcoord run export` again")
    called = f"the model of run {card['run']} after {card['after_rounds']} rounds" if card.get("run") else f"the model in {what}"
    task = spec_of(directory, spec.task.max_length if spec is not None else None)
    return Asked(called, task, spec.evaluate if spec is not None else None, directory)


def _run_file(directory: Path) -> RunFile | None:
    """That an export was made by, as far as it says; a file that is none is as good as none."""
    run = _read(directory / FILE).get("run")
    try:
        return RunFile.model_validate_json(str(run["run_file"])) if isinstance(run, dict) else None
    except (KeyError, ValueError):
        return None


def _read(file: Path) -> JsonObject:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_run(what: str) -> Asked:
    if "/" in what or Path(what).exists():
        raise OptionInvalid(f"{what}: there is no directory of that name, and no run is called so")
    run = Client().runs.get(what)
    spec = RunFile.model_validate(run.spec)
    return Asked(f"the model of run {run.name}", spec.task.spec, spec.evaluate, run_id=run.id)


@contextmanager
def _weights(asked: Asked, version: ModelVersion | None) -> Iterator[tuple[Path, int | None]]:
    """Where the weights are, for as long as they are needed; and of a run, after how many rounds."""
    if asked.directory is not None:
        yield asked.directory, None
        return
    with tempfile.TemporaryDirectory(prefix="fedcoord-predict-") as folder:
        with Terminal(stderr=True).status("fetching the model"):
            view = Client().runs.export(asked.run_id, Path(folder) / "model", version=version)
        yield Path(folder) / "model", view.after_rounds


@dataclass
class AskedRows:
    """The rows that a model is asked about, read as often as need be."""

    file: Path
    spec: TaskSpec
    columns: Mapping[str, str]
    how: TableFormat
    images: Path | None
    count: int = 0
    continues: bool = False
    """whether prompts are gone on from"""

    def check(self, new_tokens: int | None) -> None:
        """Read all of them, before anything takes long. Raises `DataError`."""
        first: Row = {}
        for row in self:
            first, self.count = first or row, self.count + 1
        self.continues = "prompt" in first and (new_tokens is not None or "completion" not in first)
        if new_tokens is not None and not self.continues:
            raise DataError(f"{self.file.name} has no column 'prompt' to go on from; without --max-new-tokens its texts get a loss each")

    def __iter__(self) -> Iterator[Row]:
        return examples(self.file, self.spec, self.columns, self.how, "--column", self.images, ASKED)


def _predict(asked: Asked, directory: Path, rows: AskedRows, new_tokens: int | None, file: RowsFile, aloud: bool) -> PredictionTally:
    from fedcybgd.shared.models.prediction import Predictor

    names = asked.spec.label_names
    tally = PredictionTally(asked.spec)
    with Terminal(stderr=True).status("reading the model") as status:
        predictor = Predictor(directory, asked.spec)
        name = rows.file.name
        made = (
            predictor.continuations(rows, name, new_tokens or NEW_TOKENS) if rows.continues else predictor.predictions(rows, name)
        )  # fmt: skip
        for number, (row, one) in enumerate(zip(rows, made, strict=True), 1):
            line: JsonObject = {"row": number}
            if one.label is not None:
                line |= {"label": names[one.label] if names else one.label, "probability": one.probability}
            if "label" in row:
                line["expected"] = names[row["label"]] if names else row["label"]
            if rows.continues:
                line |= {"continuation": one.continuation, "tokens": one.tokens}
            elif one.answer is not None:
                line |= {"answer": one.answer, "margin": one.margin}
                line |= {"expected": [answer.text for answer in row["answers"]]} if "answers" in row else {}
            elif one.label is None:
                line |= {"loss": one.loss, "tokens": one.tokens}
            tally.add(one, row)
            file.write(line)
            if aloud:
                typer.echo(json.dumps(line, ensure_ascii=False))
            status.update(f"{number:,} of {rows.count:,} rows")
    return tally
