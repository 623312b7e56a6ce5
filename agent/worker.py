"""The loop of the daemon: ask for work, do it, ask again. One failed assignment never ends it."""

import json
import logging
import os
import random
import signal
import time
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from agent import retry
from agent.assignment_run import Tools, run_assignment
from agent.cache import ShardCache
from agent.client import Client
from agent.errors import AgentError, CoordinatorSaid, KeyRefused, LeaseGone, ManifestInvalid, StopRequested, VisitFailed
from agent.messages import DataSource
from agent.outbox import Outbox
from agent.residuals import Residuals
from agent.retry import patiently
from agent.settings import Config, Home, declared, within_hours
from agent.trainer_process import TrainerProcess
from shared.protocol import LASTING_REASONS, Assignment, ClaimRequest, Progress, ReturnRequest

log = logging.getLogger("fedagent")
WAIT_S = 25.0
FAILURE_PAUSE_S = 5.0
HOURS_PAUSE_S = 30.0
QUOTING_REASONS = frozenset({"data_invalid", "other"})
"""Reasons whose message may quote a row of the data: it stays in the log and the status of this agent."""


class Worker:
    def __init__(self, home: Home, config: Config, client: Client) -> None:
        self._home, self._config, self._client = home, config, client
        data = DataSource(path=str(home.data_path(config)), columns=config.data.columns, **dict(config.data.table_format()))
        self._trainer = TrainerProcess(config)
        memory = config.limits.memory_gb
        cache = ShardCache(home.cache, int(config.limits.disk_gb * 1e9))
        self._tools = Tools(
            client,
            cache,
            Outbox(home.outbox, client.url),
            self._trainer,
            data,
            Residuals(home.residuals, client.url),
            memory * 1e9 if memory else None,
        )
        self._refused: set[str] = set()
        self._stopping = False
        self._interruptible = False
        self._done = 0
        self._written = 0.0

    def run(self) -> None:
        """Work until SIGTERM or SIGINT. Raises `KeyRefused` when the coordinator does not know this agent (any more)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._trainer.start()
        try:
            while not self._stopping:
                self._one()
        except StopRequested:
            pass
        finally:
            self._trainer.close()
            self._write_status("stopped")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            os._exit(128 + number)  # asked twice
        log.info("stopping; once more to stop without giving work back")
        self._stopping = True
        if self._interruptible or retry.asleep.is_set():
            retry.asleep.clear()
            raise StopRequested
        self._trainer.end()

    def _one(self) -> None:
        if not within_hours(self._config.limits.hours, datetime.now()):
            self._write_status("outside its hours")
            self._pause(HOURS_PAUSE_S)
            return
        self._write_status("waiting for work")
        assignment = self._claim()
        if assignment is None:
            return
        if isinstance(assignment, ManifestInvalid):
            log.error("%s", assignment.message)
            if assignment.assignment_id:
                self._give_back(assignment, "manifest_invalid", assignment.message)
            self._pause(FAILURE_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            return
        began = time.monotonic()
        log.info("round %d: training %s of %s (attempt %d)", assignment.round, assignment.block, assignment.run_name, assignment.attempt)
        try:
            run_assignment(self._tools, assignment, lambda progress: self._report(assignment, progress))
            self._done += 1
            log.info("round %d: %s sent after %.1f s", assignment.round, assignment.block, time.monotonic() - began)
        except LeaseGone as error:
            log.warning("round %d: %s dropped: %s", assignment.round, assignment.block, error.message)
            self._give_back(assignment, "stopping", "")
        except StopRequested:
            self._give_back(assignment, "stopping", "")
            if self._stopping:
                raise
        except KeyRefused:
            raise
        except VisitFailed as error:
            self._failed(assignment, error.reason, error.message)
        except Exception as error:
            log.exception("round %d: %s failed", assignment.round, assignment.block)
            self._failed(assignment, "other", f"{type(error).__name__}: {error}")

    def _claim(self) -> Assignment | ManifestInvalid | None:
        request = ClaimRequest(runs=self._config.consent.runs, refuses=sorted(self._refused), limits=declared(self._config))

        def waited(error: Exception) -> None:
            log.warning("%s; trying again", error)
            self._write_status("coordinator unreachable", error=str(error))

        self._interruptible = True
        try:
            if self._stopping:
                raise StopRequested
            # Jitter: agents that began together must not go on asking together.
            wait = WAIT_S * random.uniform(0.8, 1.0)  # noqa: S311
            return patiently(lambda: self._client.claim(request, wait), waited=waited)
        except ManifestInvalid as error:
            return error
        finally:
            self._interruptible = False

    def _failed(self, assignment: Assignment, reason: Any, message: str) -> None:
        log.error("round %d: %s: %s: %s", assignment.round, assignment.block, reason, message)
        if reason in LASTING_REASONS - {"non_finite_loss"}:
            log.error("taking no further work of run %s; mend it and start the agent again", assignment.run_name)
            self._refused.add(assignment.run_id)
        self._give_back(assignment, reason, "the agent's own log says more" if reason in QUOTING_REASONS else message)
        self._write_status("waiting after a failure", error=f"{reason}: {message}")
        self._pause(FAILURE_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    def _give_back(self, assignment: Assignment | ManifestInvalid, reason: Any, message: str) -> None:
        request = ReturnRequest(attempt=assignment.attempt, reason=reason, message=message[:2000])
        try:
            patiently(lambda: self._client.give_back(assignment.assignment_id, request), timeout=3 if self._stopping else 30)
        except CoordinatorSaid:
            pass  # it is not ours any more
        except AgentError as error:
            log.warning("could not give %s back (%s); its lease will end by itself", assignment.assignment_id, error)

    def _pause(self, seconds: float) -> None:
        self._interruptible = True
        try:
            if not self._stopping:
                time.sleep(seconds)
        finally:
            self._interruptible = False

    def _report(self, assignment: Assignment, progress: Progress) -> None:
        if progress.phase != "training" or time.monotonic() - self._written > 1 or progress.step == progress.steps:
            self._write_status("training", run=assignment.run_name, round=assignment.round, block=assignment.block, **progress.model_dump())

    def _write_status(self, state: str, **more: Any) -> None:
        self._written = time.monotonic()
        aside = self._home.status.with_suffix(".part")
        status = {"state": state, "at": datetime.now(UTC).isoformat(), "pid": os.getpid(), "visits": self._done, **more}
        try:
            aside.write_text(json.dumps(status))
            aside.replace(self._home.status)
        except OSError as error:
            log.warning("status not written: %s", error)
