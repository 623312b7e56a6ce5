"""The loop of the daemon: ask for work, do it, ask again. One failed assignment never ends it."""

import logging
import os
import random
import time
from datetime import datetime
from functools import partial
from typing import Any

from fedcybgd.agent import credentials, keys, reaching
from fedcybgd.agent.assignment_run import Tools, run_assignment
from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.consent import NotConsented, patterns, source_for
from fedcybgd.agent.device import find_device
from fedcybgd.agent.errors import (
    AgentError,
    ConfigError,
    CoordinatorSaid,
    KeyRefused,
    LeaseGone,
    ManifestInvalid,
    StopRequested,
    VisitFailed,
)
from fedcybgd.agent.failing import told_of, told_to_coordinator
from fedcybgd.agent.heartbeat import PROGRESS_EVERY_S
from fedcybgd.agent.messages import DataSource
from fedcybgd.agent.outbox import Outbox
from fedcybgd.agent.pace import ClaimPace
from fedcybgd.agent.policy import Policy, PolicyRefused, check_assignment, load_policy
from fedcybgd.agent.readiness import Stamp, Verdicts, stamp
from fedcybgd.agent.residuals import Residuals
from fedcybgd.agent.retry import patiently
from fedcybgd.agent.settings import Config, Home, declared, memory_allowed, within_hours
from fedcybgd.agent.shortage import Shortage, is_short, what_is_short
from fedcybgd.agent.showing import Showing
from fedcybgd.agent.site.asking import SiteCache
from fedcybgd.agent.stop import Stop
from fedcybgd.agent.trainer_process import TrainerProcess
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.assignments import LASTING_REASONS, LeasedAssignment, ReturnRequest
from fedcybgd.shared.files.disk import disk_reason, says_full
from fedcybgd.shared.host import logs
from fedcybgd.shared.host.watchdog import Watchdog

log = logging.getLogger("fedagent")
WAIT_S = 25.0
FAILURE_PAUSE_S = 5.0
HOURS_PAUSE_S = 30.0
REFUSED_PAUSE_S = 30.0
AT_ONCE_S = 0.5
STOPPING_S = 3.0
"""For how long an agent that stops tries to give its work back."""


class Worker:
    def __init__(self, home: Home, config: Config, client: Client, watchdog: Watchdog | None = None) -> None:
        self._home, self._client, self._site = home, client, SiteCache(client)
        self._standing = Verdicts(home, client)
        self._read = self._stamps()
        self._use(config, load_policy(home))
        self._shows = Showing(home, client, lambda: self._trainer.walls, lambda: self._standing.without, watchdog, self._site)
        self._stop = Stop(lambda: self._trainer.end(), self._leave, self._shows.alive)
        self._shortage, self._pace = Shortage(home.path), ClaimPace(client)

    def metrics(self) -> str:
        """What is shown to whoever watches this agent, in the text format of Prometheus."""
        return self._shows.metrics()

    def _stamps(self) -> tuple[Stamp, Stamp]:
        return stamp(self._home.config), stamp(self._home.policy)

    def _use(self, config: Config, policy: Policy) -> None:
        """Work by these settings from now on; the training process is a new one."""
        self._config, self._policy = config, policy
        self._site.use(config.site_cache.url)
        self._device = find_device(config.device.kind, config.device.gpu).kind
        self._trainer = TrainerProcess(config, self._home)
        self._residuals = Residuals(self._home.residuals, self._client.url)
        self._cache = ShardCache(self._home.cache, int(config.limits.disk_gb * 1e9))

    def _tools(self, data: DataSource, rows: int | None) -> Tools:
        return Tools(
            self._client, self._cache, Outbox(self._home.outbox, self._client.url), self._trainer, data, self._residuals, self._policy,
            memory_allowed(self._config, self._device) or None, lambda error: self._shows.note(str(error), str(error)), self._stop.pause,
            self._shows.alive, rows, self._site,
        )  # fmt: skip

    def _reread(self) -> bool:
        """Take over a changed agent.toml or policy.toml. False while one is wrong: nobody knows then what its owner consents to."""
        if (now := self._stamps()) == self._read:
            return True
        try:
            config, policy = reaching.load(self._home)
            find_device(config.device.kind, config.device.gpu)
        except ConfigError as error:
            self._fail("settings are wrong: no work is taken", error.message)
            return False
        self._read = now
        if config.coordinator != self._config.coordinator:
            log.warning("agent.toml names another coordinator: start the agent again to go there")
        if policy.coordinator != self._policy.coordinator:
            log.warning("policy.toml has other rules for the coordinator: start the agent again for them")
        if config.model_copy(update={"data": self._config.data}) == self._config:
            self._config, self._policy = config, policy
        else:
            self._trainer.close()
            self._use(config, policy)
            self._trainer.start()
        log.info("the settings of %s have changed and were read again", self._home.path)
        return True

    def run(self) -> None:
        """Work until SIGTERM or SIGINT. Raises `KeyRefused` when the coordinator does not know this agent (any more)."""
        self._stop.listen()
        self._client.as_daemon()
        self._trainer.start()
        try:
            while not self._stop.asked:
                try:
                    self._one()
                    self._shows.alive()
                except (OSError, MemoryError) as error:
                    if not is_short(error):
                        raise
                    self._short(what_is_short(error))
        except StopRequested:
            pass
        finally:
            self._trainer.close()
            self._shows.state("stopped")
            self._stop.left()

    def _leave(self) -> None:
        """End at once: what is trained lies in the outbox, and a lease that is not given back ends by itself."""
        log.warning("a transfer or the training process holds the agent up; it ends without giving work back")
        self._trainer.kill()
        self._shows.state("stopped")
        os._exit(0)

    def _one(self) -> None:
        if not within_hours(self._config.limits.hours, datetime.now()):
            self._shows.state("outside its hours", HOURS_PAUSE_S)
            self._stop.pause(HOURS_PAUSE_S)
            return
        if not self._reread():
            self._stop.pause(FAILURE_PAUSE_S)
            return
        self._refresh()
        self._renew_key()
        self._shows.alive()
        self._shows.state("waiting for work", self._pace.longest_s(WAIT_S))
        try:
            assignment = self._claim()
        except ManifestInvalid as error:
            log.error("%s", error.message)
            if error.assignment_id:
                self._give_back(error.assignment_id, error.attempt, "manifest_invalid", error.message)
            self._stop.pause(FAILURE_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            return
        if assignment is None:
            return
        if self._reread():  # its owner may have changed his mind while it waited
            with logs.about(
                run=assignment.run_name, round=assignment.round, block=assignment.block, assignment=assignment.assignment_id,
                attempt=assignment.attempt,
            ):  # fmt: skip
                self._work(assignment)
        else:
            self._give_back(assignment.assignment_id, assignment.attempt, "stopping", "")

    def _work(self, assignment: LeasedAssignment) -> None:
        # Whatever a coordinator offers: nothing is fetched, and no row is read, for a run that the owner has tied no data to.
        try:
            source = source_for(self._home, self._config, assignment.run_name)
            check_assignment(self._policy, assignment, rows := self._standing.rows(assignment.run_id))
        except NotConsented as error:
            self._failed(assignment, "not_consented", error.message)
            return
        except PolicyRefused as error:
            self._failed(assignment, error.reason, error.message)
            return
        began = time.monotonic()
        log.info("round %d: training %s of %s (attempt %d)", assignment.round, assignment.block, assignment.run_name, assignment.attempt)
        cache, delivered = self._cache, False
        self._shows.begins(cache.fetched_in_all)
        try:
            run_assignment(self._tools(source, rows), assignment, lambda said: self._shows.progress(assignment, said, PROGRESS_EVERY_S))
            delivered = True
            self._shortage.over()
            log.info("round %d: %s sent after %.1f s", assignment.round, assignment.block, time.monotonic() - began)
        except LeaseGone as error:
            log.warning("round %d: %s dropped: %s", assignment.round, assignment.block, error.message)
            self._give_back(assignment.assignment_id, assignment.attempt, "stopping", "")
        except StopRequested:
            self._give_back(assignment.assignment_id, assignment.attempt, "stopping", "")
            if self._stop.asked:
                raise
        except KeyRefused:
            raise
        except VisitFailed as error:
            self._failed(assignment, error.reason, error.message, error.told)
        except Exception as error:
            if is_short(error):
                reason = "disk_full" if says_full(error) else "other"
                self._failed(assignment, reason, what_is_short(error), "this machine has nothing to give for now", short=True)
                return
            log.exception("round %d: %s failed", assignment.round, assignment.block)
            disk = disk_reason(error) if isinstance(error, OSError) else None
            self._failed(assignment, disk or "bug", f"{type(error).__name__}: {error}", told_of(error))
        finally:
            self._shows.ends(assignment, cache.fetched_in_all, delivered)

    def _refresh(self) -> None:
        """Say of each run whether its data fit, where that may be another than before."""
        try:
            with self._stop.waiting():
                self._standing.refresh(self._config, self._policy)
        except KeyRefused:
            raise
        except AgentError as error:
            log.debug("not reported which runs the data fit: %s", error.message)

    def _renew_key(self) -> None:
        """Have another key where the one at hand ends: when half of its time is over, and nobody knows how long the next visit takes."""
        life = self._client.key_life
        if life is None or not life.is_half_over():
            return
        speak = partial(reaching.client, self._home, self._config, self._policy)
        try:
            with self._stop.waiting():
                # Until it is answered: with a key that may be void already nothing else could be asked.
                self._client.use(patiently(lambda: keys.renewed(self._home, speak), waited=self._waited, pause=self._stop.pause))
                self._client.me()
        except KeyRefused:
            raise
        except AgentError as error:
            log.warning("the key of this agent ends, and was not changed yet: %s", error.message)
            return
        log.info("this agent has another key, for the one before would have ended")

    def _waited(self, error: Exception) -> None:
        log.warning("%s; trying again", error)
        self._shows.note(str(error), str(error))
        self._shows.state("coordinator unreachable", REFUSED_PAUSE_S)

    def _claim(self) -> LeasedAssignment | None:
        """Ask for work. Raises `ManifestInvalid` for an assignment that cannot be read."""
        refuses = sorted({verdict.run_id for verdict in self._standing.without})[:1000]
        request = ClaimRequest(runs=patterns(self._config), refuses=refuses, limits=declared(self._config, self._device))
        began, known = time.monotonic(), self._client.coordinator
        try:
            with self._stop.waiting():
                found = patiently(lambda: self._pace.claim(request, WAIT_S), waited=self._waited, pause=self._stop.pause)
        except KeyRefused:
            raise
        except CoordinatorSaid as error:
            # Not a word about the key: a version that does not fit, a mistake of the coordinator. It may be mended at any time.
            self._waited(error)
            self._stop.pause(REFUSED_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            return None
        if known is None and self._client.coordinator is not None:
            credentials.remember(self._home, self._client.coordinator)
        if found is None and time.monotonic() - began < AT_ONCE_S:
            self._stop.pause(random.uniform(0.2, 1))  # noqa: S311 - whoever answers without waiting is not asked without waiting
        return found

    def _failed(self, assignment: LeasedAssignment, reason: Any, message: str, told: str | None = None, short: bool = False) -> None:
        log.error("round %d: %s: %s: %s", assignment.round, assignment.block, reason, message)
        if reason in LASTING_REASONS - {"non_finite_loss"}:
            log.error("taking no further work of run %s until settings or data have changed, or `fedagent check`", assignment.run_name)
            self._standing.refuse(assignment.run_id, assignment.run_name, reason, message)
        said = told_to_coordinator(reason, message, told)
        self._give_back(assignment.assignment_id, assignment.attempt, reason, said)
        self._shows.failed(reason)
        self._shows.note(f"{reason}: {message}", f"{reason}: {said}")
        if short or reason == "disk_full":
            self._short(message, said=True)
            return
        self._shows.state("waiting after a failure", 1.5 * FAILURE_PAUSE_S)
        self._stop.pause(FAILURE_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    def _short(self, message: str, said: bool = False) -> None:
        """Pause until this machine may have more to give."""
        if not said:
            log.error("%s", message)
            self._shows.note(message)
        self._shows.state("paused")
        self._shortage.wait(self._stop.pause)

    def _fail(self, state: str, message: str) -> None:
        if self._shows.error != message:
            log.error("%s: %s", state, message)
            self._shows.note(message)
        self._shows.state(state, FAILURE_PAUSE_S)

    def _give_back(self, assignment_id: str, attempt: int, reason: Any, message: str) -> None:
        request = ReturnRequest(attempt=attempt, reason=reason, message=message[:2000])
        try:
            # As long as it takes: without the reason the coordinator would only see that the lease ends.
            patiently(
                lambda: self._client.give_back(assignment_id, request),
                timeout=STOPPING_S if self._stop.asked else None,
                waited=lambda error: log.warning("not given back yet: %s", error),
                pause=time.sleep if self._stop.asked else self._stop.pause,
            )
        except CoordinatorSaid:
            pass  # it is not ours any more
        except AgentError as error:
            log.warning("could not give %s back (%s); its lease will end by itself", assignment_id, error)
