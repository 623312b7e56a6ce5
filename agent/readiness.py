"""What this agent says of the runs that are open to it: whether its data fit, or why not. Never rows, nor names of columns."""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedcybgd.agent import credentials
from fedcybgd.agent.client import Client
from fedcybgd.agent.consent import NotConsented, chosen, source_of
from fedcybgd.agent.errors import CoordinatorSaid
from fedcybgd.agent.messages import DataSource
from fedcybgd.agent.policy import Policy, PolicyRefused, check_offer
from fedcybgd.agent.settings import Config, Home
from fedcybgd.shared.contract.agents import RunOffer, RunReadiness, UnfitReason
from fedcybgd.shared.contract.errors import DataAway, DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import known_task
from fedcybgd.shared.files.tables import Row, examples

log = logging.getLogger("fedagent")
Stamp = tuple[int, int, int] | None
AGAIN_S = 60.0
"""Seconds after which rows are looked at again that could not be had"""


@dataclass(frozen=True)
class Verdict:
    """Whether a run may use data of this agent, and whether they fit; `message` may quote them and stays here."""

    run_id: str
    run: str
    reason: UnfitReason | None = None
    message: str = ""
    data: str = ""
    """name of the data set"""
    rows: int = 0
    passing: bool = False
    """It may be another one without anybody mending anything here: the rows lie on a disk or a share that does not give them at present."""

    def said(self, tell_rows: str) -> RunReadiness:
        """What the coordinator is told of it."""
        told = self.reason is None and tell_rows != "no"
        rows = self.rows if tell_rows == "exactly" else 10 ** (len(str(self.rows)) - 1)
        return RunReadiness(
            run_id=self.run_id, fits=self.reason is None, reason=self.reason, rows=rows if told else None, exact=told and tell_rows == "exactly"
        )  # fmt: skip


def judge(home: Home, config: Config, policy: Policy, run: RunOffer) -> Verdict:
    """Read all rows that a run may use."""
    try:
        name = chosen(config.data, run.name)
    except NotConsented as error:
        return Verdict(run.run_id, run.name, "not_consented", error.message)
    if known_task(run.task) is None:
        text = f"this version of fedagent knows no task {run.task}: update it"
        return Verdict(run.run_id, run.name, "manifest_invalid", text, name)
    try:
        check_offer(policy, run)
    except PolicyRefused as error:
        return Verdict(run.run_id, run.name, "policy_refused", error.message, name)
    if run.visits is not None and run.visits.weighed_by_rows and config.data[name].tell_rows == "no":
        text = (
            f'the run weighs deltas by rows, and [data.{name}] has tell_rows = "no": allow roughly, or ask for a run with `weights: equal`'
        )
        return Verdict(run.run_id, run.name, "rows_hidden", text, name)
    source = source_of(home, config.data[name])
    try:
        if not Path(source.path).is_file():
            return Verdict(run.run_id, run.name, "data_missing", f"data file {source.path} does not exist or is no file", name)
        return Verdict(run.run_id, run.name, data=name, rows=count_examples(source, run, name))
    except (DataAway, OSError) as error:
        return Verdict(run.run_id, run.name, "data_missing", f"{error}; it is tried again", name, passing=True)
    except DataError as error:
        return Verdict(run.run_id, run.name, "data_invalid", error.message, name)
    except MemoryError:
        raise  # of this machine, and not of the rows
    except Exception as error:
        log.exception("the data of run %s cannot be read", run.name)
        return Verdict(run.run_id, run.name, "data_invalid", f"{type(error).__name__}: {error}", name)


def count_examples(source: DataSource, run: RunOffer, name: str) -> int:
    return sum(1 for _ in rows_of(source, run, f"[data.{name}.columns]"))


def rows_of(source: DataSource, run: RunOffer, columns: str) -> Iterator[Row]:
    """The rows of `source` as `run` would train on them; `columns` is where its columns are written."""
    task = known_task(run.task)
    assert task is not None, "judge refuses others"
    spec = TaskSpec(task=task, num_labels=run.num_labels, label_names=run.label_names, max_length=run.max_length)
    return examples(Path(source.path), spec, source.columns, source, columns, None if source.images is None else Path(source.images))


def report(client: Client, config: Config, verdicts: Iterable[Verdict]) -> None:
    """Tell the coordinator; one of an earlier version does not want to know."""
    try:
        client.say_ready([v.said(config.data[v.data].tell_rows if v.data else "no") for v in verdicts])
    except CoordinatorSaid as error:
        if error.status != 404:
            raise


class Verdicts:
    """Of which runs the agent takes work, and of which not; looked at again whenever the owner may have mended something."""

    def __init__(self, home: Home, client: Client) -> None:
        self._home, self._client = home, client
        self._verdicts: dict[str, Verdict] = {}
        self._refused: dict[str, Verdict] = {}
        """by what happened in a visit"""
        self._seen: dict[Path, Stamp] = {}
        self._reported: str | None = ""
        """the coordinator's offers that it was told of last"""
        self._again_at = math.inf

    @property
    def without(self) -> list[Verdict]:
        """The runs of which no work is taken, with the reason."""
        return [*self._refused.values(), *(v for v in self._verdicts.values() if v.reason and v.run_id not in self._refused)]

    def refuse(self, run_id: str, run: str, reason: UnfitReason, message: str) -> None:
        """Take no further work of a run until something is mended."""
        self._refused[run_id] = Verdict(run_id, run, reason, message)

    def rows(self, run_id: str) -> int | None:
        """How many rows a run may use, where they were counted."""
        verdict = self._verdicts.get(run_id)
        return verdict.rows if verdict is not None and verdict.reason is None else None

    def refresh(self, config: Config, policy: Policy) -> None:
        """Judge and report anew where there are other runs, or where settings, data or a check are newer.

        Raises `AgentError`, and `MemoryError` where this machine has none for it.
        """
        rows = [path for data in config.data.values() for path in (self._home.data_path(data), self._home.images_path(data))]
        now = {path: stamp(path) for path in (self._home.config, self._home.policy, self._home.checked, *filter(None, rows))}
        if now != self._seen:
            if self._refused:
                log.info("settings or data have changed: runs that were refused are taken again")
            self._refused.clear()
            self._reported, self._seen = "", now
        if self._reported == self._client.offers and time.monotonic() < self._again_at:
            return
        me, offers = self._client.me(), self._client.offers
        try:
            credentials.rename(self._home, me.name)
        except OSError as error:
            log.warning("this agent is called %s now, which cannot be written to %s: %s", me.name, self._home.credentials, error.strerror)
        before = self._verdicts
        self._verdicts = {run.run_id: self._refused.get(run.run_id) or judge(self._home, config, policy, run) for run in me.runs}
        report(self._client, config, self._verdicts.values())
        self._reported = offers
        self._again_at = time.monotonic() + AGAIN_S if any(v.passing for v in self._verdicts.values()) else math.inf
        for verdict in self._verdicts.values():
            if verdict.reason and verdict != before.get(verdict.run_id):
                log.warning("takes no work of run %s: %s: %s", verdict.run, verdict.reason, verdict.message)


def stamp(path: Path) -> Stamp:
    """Changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
