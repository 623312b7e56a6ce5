"""Where the curves of a run are written and read back, and a tracker that is killed while it writes: a process imports little besides."""

import json
import os
import signal
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from fedcybgd import Client
from fedcybgd.client.trackers import mlflow
from fedcybgd.client.trackers.base import Key, Tracker
from fedcybgd.client.trackers.mlflow import MLflow
from fedcybgd.client.trackers.tensorboard import TensorBoard
from fedcybgd.client.trackers.wandb import WandB
from fedcybgd.shared.contract.views import RunView

LIVES, AT_ONCE = 7, 3
"""Points until a tracker is killed, and those that MLflow is sent in one request there"""


class InTensorBoard:
    package = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tracker(self) -> Tracker:
        return TensorBoard(self.folder)

    def kept(self, run: RunView) -> tuple[list[tuple[Key, float]], str]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(self.folder / f"{run.name}.{run.id}"), size_guidance={"scalars": 0, "tensors": 0})
        found.Reload()
        points = [
            (Key(name, event.step, round(event.wall_time * 1000)), event.value)
            for name in found.Tags()["scalars"]
            for event in found.Scalars(name)
        ]
        words = found.Tensors("tags")[-1].tensor_proto.string_val[0].decode()
        return points, words + str(found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)


class InMLflow:
    package = "mlflow"

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"

    def tracker(self) -> Tracker:
        return MLflow(self.uri, "experiments")

    def kept(self, run: RunView) -> tuple[list[tuple[Key, float]], str]:
        client = import_module("mlflow").MlflowClient(tracking_uri=self.uri)
        [made] = client.search_runs([client.get_experiment_by_name("experiments").experiment_id])
        assert made.info.run_name == run.name
        assert made.info.status == "FINISHED"
        histories = [client.get_metric_history(made.info.run_id, name) for name in made.data.metrics]
        points = [(Key(m.key, m.step, m.timestamp), m.value) for history in histories for m in history]
        return points, str(made.data.params) + str(made.data.tags)


class InWandB:
    package = "wandb"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tracker(self) -> Tracker:
        return WandB("project", directory=self.folder)

    def kept(self, run: RunView) -> tuple[list[tuple[Key, float]], str]:
        """When a point was is in none of its records: the file of what it was told says it."""
        pb = import_module("wandb.proto.wandb_internal_pb2")
        told = list[Key]()
        for line in filter(None, (self.folder / "wandb" / f"fedcybgd-{run.id}.jsonl").read_text().splitlines()):
            if isinstance(said := json.loads(line), list):
                told.append(Key(*said))
            else:
                del told[said["after"] :]
        values, words = list[tuple[str, int, float]](), ""
        for file in sorted(self.folder.glob("wandb/offline-run-*/*.wandb")):
            for record in map(pb.Record.FromString, records(file.read_bytes())):
                items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                rounds = items.pop("rounds", 0)
                values += [(name, rounds, value) for name, value in items.items() if not name.startswith("_")]
                words += "".join(f"{item.key}: {item.value_json}, " for item in [*record.config.update, *record.run.config.update])
        assert [(key.name, key.step) for key in told] == [(name, step) for name, step, _ in values]
        return [(key, value) for key, (_, _, value) in zip(told, values, strict=True)], words


def records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log format after 7 bytes; a record may go on in the next of its blocks of 32 KiB."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + size > len(data):
            return
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


class Dying(list[Any]):
    """Points, of which only some are handed out: then this process is killed."""

    def __iter__(self) -> Iterator[Any]:
        for number, point in enumerate(super().__iter__()):
            if number == LIVES:
                os.kill(os.getpid(), signal.SIGKILL)
            yield point


def track_and_die(place: Any, url: str, key: str, run: str) -> None:
    """In a process of its own."""
    tracker = place.tracker()

    class Dies:
        open, close = staticmethod(tracker.open), staticmethod(tracker.close)

        def write(self, points: Any, tags: Any) -> None:
            tracker.write(Dying(points), tags)

    os.environ.pop("WANDB_SERVICE", None)  # else it would share what other tests of this process have begun
    mlflow.AT_ONCE = AT_ONCE
    Client(url, key).runs.track(run, Dies(), follow=False)
