"""The rows of one file, written into a file for each agent."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcybgd.local.errors import SplitInvalid
from fedcybgd.local.split import Split, dealt, values_of
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.images import StoredImage
from fedcybgd.shared.files.labels import as_text, bare, shown
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.files.tables import Row, column_names, examples, read_rows


@dataclass(frozen=True)
class TrialRows:
    """A file, and how its rows are read as examples of a task."""

    path: Path
    spec: TaskSpec
    columns: Mapping[str, str]
    how: TableFormat | None = None
    images: Path | None = None

    def examples(self) -> Iterator[Row]:
        return examples(self.path, self.spec, self.columns, self.how, "--column", self.images)

    def keys(self, split: Split) -> list[int | str]:
        """Of each row what it is dealt out by; each is looked at as an agent would. Raises `DataError`, `SplitInvalid`."""
        if split.kind == "dirichlet" and not self.spec.is_classification:
            raise SplitInvalid(f"a Dirichlet split goes by labels, and {self.spec.task} has none; say iid or column:NAME")
        if split.kind != "column":
            return [row.get("label", 0) for row in self.examples()]
        there = column_names(self.path, self.how) or []
        column = next((name for name in there if bare(name) == bare(split.column)), None)
        if column is None:
            raise SplitInvalid(f"{self.path.name} has no column {split.column!r}; its columns are {', '.join(map(repr, there))}")
        rows = zip(read_rows(self.path, self.how, [column]), self.examples(), strict=True)
        return [self._value(row, column, number) for number, (row, _) in enumerate(rows, 1)]

    def _value(self, row: Row, column: str, number: int) -> str:
        """The same for what a CSV file would write alike, and for the same characters in another form of Unicode."""
        value = row.get(column)
        text = None if isinstance(value, list | dict) or value is None or value != value else bare(as_text(value) or str(value))
        if not text or any("\ud800" <= c <= "\udfff" for c in text):
            raise DataError(f"{self.path.name} row {number}: column {column!r} says not whose it is, but {shown(value)}", row=number)
        return text

    def split(self, split: Split, names: Sequence[str] | None, agents: int | None, seed: int, folder: Path) -> "list[Portion]":
        """A file of rows for each agent in `folder`: as many as `agents`, or as the column has values. Raises `DataError`, `SplitInvalid`."""
        keys = self.keys(split)
        if agents is None:
            agents = len(values_of(keys))
        agent_of = dealt(split, keys, agents, seed)
        portions = [Portion(name, folder / f"{name}.jsonl", folder / name) for name in names or [f"agent-{n + 1}" for n in range(agents)]]
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files = [stack.enter_context(portion.path.open("w", encoding="utf-8")) for portion in portions]
            for number, (agent, row) in enumerate(zip(agent_of, self.examples(), strict=True)):
                portion = portions[agent]
                portion.rows += 1
                if "label" in row:
                    portion.labels[row["label"]] += 1
                files[agent].write(json.dumps(self._plain(row, portion, number), ensure_ascii=False) + "\n")
        if split.kind == "column":
            for value, agent in dict(zip(keys, agent_of, strict=True)).items():
                portions[agent].values.append(str(value))
        return portions

    def _plain(self, row: Row, portion: "Portion", number: int) -> dict[str, Any]:
        """What an agent reads as the same example."""
        if self.spec.label_names is not None:
            row = {**row, "label": self.spec.label_names[row["label"]]}
        if isinstance(image := row.get("image"), StoredImage):
            portion.images.mkdir(exist_ok=True)
            (portion.images / str(number)).write_bytes(image.encoded())
            row = {**row, "image": str(number)}
        if "answers" in row:
            row = {**row, "answers": [{"text": answer.text, "answer_start": answer.start} for answer in row["answers"]]}
        return row


@dataclass
class Portion:
    """The rows of one agent: a file, and the folder of its images where it has some."""

    name: str
    path: Path
    images: Path
    rows: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    """how many rows have which, where rows have one"""
    values: list[str] = field(default_factory=list)
    """of the column that rows were dealt out by"""
