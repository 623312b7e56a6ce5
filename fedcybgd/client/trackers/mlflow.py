"""MLflow: a run of an experiment at a tracking server, or in a database of this machine."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from fedcybgd.client.trackers.base import Key, Point, Tracked, package, told

EXTRA = "mlflow"
RUN_ID = "fedcybgd.run_id"
"""The tag by which a run is found again"""
AT_ONCE = 100
LONGEST = 500
ENDINGS = {"completed": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
T = TypeVar("T")


class MLflow:
    def __init__(self, uri: str | None = None, experiment: str = "fedcybgd") -> None:
        """`uri`: of a server, or as in sqlite:///mlflow.db; by default that of MLFLOW_TRACKING_URI."""
        self._uri, self._experiment = uri or os.environ.get("MLFLOW_TRACKING_URI"), experiment
        self._client: Any = None
        self._id = ""

    def open(self, run: Tracked) -> set[Key]:
        entities = package("mlflow.entities", EXTRA)
        with told(f"MLflow at {self._uri}"):
            self._client = client = package("mlflow", EXTRA).MlflowClient(tracking_uri=self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            place = experiment.experiment_id if experiment is not None else client.create_experiment(self._experiment)
            found = client.search_runs([place], filter_string=f"tags.`{RUN_ID}` = '{run.id}'", max_results=1)
            made = found[0] if found else client.create_run(place, run_name=run.name, tags={RUN_ID: run.id})
            self._id = made.info.run_id
            new = {name: value for name, value in run.parameters.items() if name not in made.data.params}
            for some in _parts(new.items()):
                client.log_batch(self._id, params=[entities.Param(name, value[:LONGEST]) for name, value in some])
            client.update_run(self._id, status="RUNNING")
            histories = (client.get_metric_history(self._id, name) for name in made.data.metrics)
            return {Key(m.key, m.step, m.timestamp) for history in histories for m in history}

    def write(self, points: Sequence[Point], tags: Mapping[str, str]) -> None:
        entities = package("mlflow.entities", EXTRA)
        with told(f"MLflow at {self._uri}"):
            for some in _parts(points):
                numbers = [entities.Metric(p.name, p.value, p.key.ms, p.step) for p in some]
                self._client.log_batch(self._id, metrics=numbers)
            for words in _parts(tags.items()):
                self._client.log_batch(self._id, tags=[entities.RunTag(f"fedcybgd.{name}", value) for name, value in words])

    def close(self, state: str) -> None:
        if self._id and state in ENDINGS:
            with told(f"MLflow at {self._uri}"):
                self._client.set_terminated(self._id, status=ENDINGS[state])


def _parts(of: Iterable[T]) -> Iterator[list[T]]:
    """As many at once as a server takes."""
    rest = iter(of)
    while some := list(islice(rest, AT_ONCE)):
        yield some
