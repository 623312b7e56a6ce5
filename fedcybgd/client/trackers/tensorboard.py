"""TensorBoard: event files in a folder of the run's own, which `tensorboard --logdir` shows."""

import fcntl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fedcybgd.client.errors import FileUnusable, TrackerFailed
from fedcybgd.client.trackers.base import Key, Point, Tracked, package, told
from fedcybgd.shared.files.paths import inside

EXTRA = "tensorboard"
TAGS = "tags"


class TensorBoard:
    def __init__(self, directory: Path | str) -> None:
        """Each run has a folder in it, called by its name and id."""
        self._root = Path(directory)
        self._writer: Any = None
        self._lock: IO[bytes] | None = None
        self._words = b""
        """those that stand beside the run"""

    def open(self, run: Tracked) -> set[Key]:
        events = package("tensorboard.summary.writer.event_file_writer", EXTRA)
        hparams = package("tensorboard.plugins.hparams.summary_v2", EXTRA)
        folder = inside(self._root, f"{run.name}.{run.id}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("wb")
        except OSError as error:
            raise FileUnusable(f"{folder}: {error.strerror or error}; choose another directory") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrackerFailed(f"somebody writes run {run.name} to {self._root} already") from error
        with told(f"TensorBoard in {self._root}"):
            there, self._words = _there(folder)
            self._writer = events.EventFileWriter(str(folder))
            if not there:
                self._add(hparams.hparams_pb(dict(run.parameters), trial_id=run.id), time.time(), 0)
        return there

    def write(self, points: Sequence[Point], tags: Mapping[str, str]) -> None:
        summaries = package("tensorboard.compat.proto.summary_pb2", EXTRA)
        with told(f"TensorBoard in {self._root}"):
            for point in points:
                value = summaries.Summary.Value(tag=point.name, simple_value=point.value)
                self._add(summaries.Summary(value=[value]), point.at.timestamp(), point.step)
            if (words := _table(tags)) != self._words:
                self._words = words
                self._add(_text(summaries, words), time.time(), max((point.step for point in points), default=0))
            self._writer.flush()

    def close(self, state: str) -> None:  # noqa: ARG002
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            self._lock.close()

    def _add(self, summary: object, at: float, step: int) -> None:
        event = package("tensorboard.compat.proto.event_pb2", EXTRA).Event
        self._writer.add_event(event(wall_time=at, step=step, summary=summary))


def _there(folder: Path) -> tuple[set[Key], bytes]:
    """Every point of the event files of a folder, none left out; and the newest words."""
    accumulator = package("tensorboard.backend.event_processing.event_accumulator", EXTRA)
    found = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    found.Reload()
    names = found.Tags()
    texts = found.Tensors(TAGS) if TAGS in names[accumulator.TENSORS] else []
    points = {Key(name, event.step, round(event.wall_time * 1000)) for name in names[accumulator.SCALARS] for event in found.Scalars(name)}
    return points, texts[-1].tensor_proto.string_val[0] if texts else b""


def _table(tags: Mapping[str, str]) -> bytes:
    """In Markdown, as the tab of texts draws it."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in tags.items())]).encode()


def _text(summaries: Any, text: bytes) -> object:
    tensors = package("tensorboard.compat.proto.tensor_pb2", EXTRA)
    types = package("tensorboard.compat.proto.types_pb2", EXTRA)
    metadata = package("tensorboard.plugins.text.metadata", EXTRA).create_summary_metadata(display_name=TAGS, description="")
    tensor = tensors.TensorProto(dtype=types.DT_STRING, string_val=[text])
    return summaries.Summary(value=[summaries.Summary.Value(tag=TAGS, metadata=metadata, tensor=tensor)])
