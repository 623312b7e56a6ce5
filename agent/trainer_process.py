"""The daemon's handle on the training process: starts it, keeps it warm, notices when it dies."""

import contextlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from fedcybgd.agent.device import CARD_ORDER
from fedcybgd.agent.errors import LeaseGone, StopRequested, VisitFailed
from fedcybgd.agent.messages import Command, TrainerEvent, TrainRequest
from fedcybgd.agent.policy import PolicyRefused
from fedcybgd.agent.rooms import ISOLATED, identity, prepare, walls_of
from fedcybgd.agent.sandbox.walls import environment
from fedcybgd.agent.settings import Config, Home
from fedcybgd.agent.watch import Watch
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import TrainMetrics

log = logging.getLogger("fedagent.trainer")
LOOK_EVERY_S = 1.0
STOP_WITHIN_S = 20.0
"""A process that heeds no stop is ended then: the next visit pays for it with a start."""
END_WITHIN_S = 3.0
"""The same where the agent itself ends: nothing is lost then."""
STARTS_WITHIN = 2_000_000_000
"""Bytes in which the process begins on any device: where it may take more it ended for another reason"""
ENDED_BY_OTHERS = frozenset({-signal.SIGKILL, -signal.SIGTERM})


class TrainerProcess:
    """One child process; started ahead of need, and again after it died."""

    def __init__(self, config: Config, home: Home) -> None:
        limit = int((config.limits.memory_gb or 0) * 1e9)
        self._limit, self._walls, self._residuals = limit, walls_of(home, config), home.residuals
        card = int((config.limits.gpu_memory_gb or 0) * 1e9)
        arguments = [config.device.kind, str(config.device.threads), str(limit), str(card), config.training.model_dump_json()]
        self._command = [*ISOLATED, "fedcybgd.agent.trainer", *arguments]
        # Threads that wait for each other by spinning lose all their time as soon as another process wants a core.
        asked = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._environment = {"OMP_WAIT_POLICY": "PASSIVE", **environment(self._walls, os.environ), **asked}
        if limit:
            # Freed tensors go back to the system at once: by default the heap keeps holes of up to half of the peak. It costs time,
            # so only an agent that must save memory does it.
            self._environment.setdefault("MALLOC_MMAP_THRESHOLD_", "262144")
        for name, value in CARD_ORDER.items():
            self._environment.setdefault(name, value)
        if config.device.gpu is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = str(config.device.gpu)
        if config.device.threads:
            self._environment["OMP_NUM_THREADS"] = str(config.device.threads)
        self._stall_s = config.limits.stall_s
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.Queue[TrainerEvent | None] = queue.Queue()
        self._starting = False
        self._ending = threading.Event()
        self._data: tuple[object, ...] = ()
        self.walls: str | None = None
        """Which walls stand around it, as it said"""

    def start(self) -> None:
        """Start the process if it does not run; it imports torch while the daemon asks for work."""
        # It may read the files that there were when it was started: one that took the place of another is a different one.
        self._residuals.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = tuple((path, identity(path)) for path in self._walls.read)
        if self._process is not None and self._process.poll() is None:
            if data == self._data:
                return
            self.close()
        self._data = data
        self._events = queue.Queue()
        prepare(self._walls)
        self._process = subprocess.Popen(
            [*self._command, self._walls.model_dump_json(), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment, start_new_session=True,
            cwd=self._walls.work,
        )  # fmt: skip
        self._starting = True
        threading.Thread(target=self._listen, args=(self._process, self._events), daemon=True).start()

    def until_ready(self, within_s: float) -> TrainerEvent | None:
        """Start the process and wait for what it says of what it trains on; None: it ended before, or took too long."""
        self.start()
        until = time.monotonic() + within_s
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=left)
                if event is None or event.event == "ready":
                    return event
        return None

    def _let_read(self, rows: Path) -> None:
        """See to it that the next process may read these rows; one that runs cannot be given what it did not have."""
        if rows not in self._walls.read:
            self._walls = self._walls.model_copy(update={"read": [self._walls.read[0], rows]})

    def _listen(self, process: "subprocess.Popen[str]", events: "queue.Queue[TrainerEvent | None]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                events.put(event := TrainerEvent.model_validate_json(line))
                if event.event == "walled":
                    self.walls = event.message
            except ValidationError:
                log.warning("the training process said: %.200s", line.rstrip())
        process.wait()
        events.put(None)

    def train(self, request: TrainRequest, report: Callable[[Progress], None], lost: threading.Event) -> TrainMetrics:
        """Have a visit done. Raises `VisitFailed` with its reason, `StopRequested` after `end`, `LeaseGone` if `lost`."""
        if self._ending.is_set():
            raise StopRequested
        if lost.is_set():
            raise LeaseGone("the lease is gone")
        self._let_read(Path(request.data.path))
        self.start()
        self._send(Command(op="train", request=request))
        if self._ending.is_set() or lost.is_set():
            self.stop(request.visit)  # asked for a moment ago: the visit that was just begun does not know it
        most_s = request.bounds.seconds if request.bounds is not None else math.inf
        watch = Watch(self._stall_s, request.stall_s, most_s, starting=self._starting)
        at = Progress(phase="loading")
        while True:
            try:
                event = self._events.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                self._look_after(watch, lost)
                continue
            if event is None:
                self._starting = watch.starting
                raise self._death()
            moved = watch.heard(event)
            self._starting = watch.starting
            if moved and event.event == "alive":
                at = at.model_copy(update={"moved": int(1000 * (event.cpu_s or 0))})
                report(at)
            if event.event in ("walled", "ready", "alive", "progress") or event.visit != request.visit:
                self._look_after(watch, lost)
            if event.visit != request.visit:
                continue
            match event.event:
                case "progress":
                    assert event.progress is not None
                    report(at := event.progress)
                case "done":
                    assert event.metrics is not None
                    return event.metrics
                case "failed":
                    if event.spoilt:
                        self.close()
                    raise VisitFailed(event.reason or "other", event.message, event.facts.text() if event.facts else None)
                case "stopped":
                    if self._ending.is_set():
                        raise StopRequested
                    raise LeaseGone("the lease is gone")

    def _death(self) -> VisitFailed:
        """Why there is no process any more. One that cannot even begin within its limit would not at the next visit either."""
        code = self._process.wait() if self._process is not None else 0
        if self._starting and 0 < self._limit <= STARTS_WITHIN and code not in ENDED_BY_OTHERS:
            text = f"the training process ended before it could train ({_cause(code)}): limits.memory_gb = {self._limit / 1e9:g} is too little for it"
            return VisitFailed("memory_limit", text)
        if self._limit and code == -signal.SIGABRT:  # what C++ does where it gets no memory and nobody asks
            text = f"the training process was aborted, most likely because limits.memory_gb = {self._limit / 1e9:g} is too little for this visit"
            return VisitFailed("out_of_memory", text)
        return VisitFailed("trainer_died", f"the training process died ({_cause(code)}); a new one is started")

    def _look_after(self, watch: Watch, lost: threading.Event) -> None:
        """End the process if it hangs, or does not heed a stop: what holds it up may never come back."""
        if self._ending.is_set() or lost.is_set():
            if not watch.heeds_no_stop(END_WITHIN_S if self._ending.is_set() else STOP_WITHIN_S):
                return
            self.kill()
            if self._ending.is_set():
                raise StopRequested
            raise LeaseGone("the lease is gone; the training process did not stop by itself")
        try:
            watch.check_time()
        except PolicyRefused:
            self.kill()
            raise
        if (seconds := watch.stalled()) is not None:
            self.kill()
            text = f"no step ended for {seconds:.0f} s; the training process was ended, and a new one is started"
            raise VisitFailed("stalled", text)

    def stop(self, visit: str | None = None) -> None:
        """Ask a visit to stop before its next step; from any thread, and harmless when it is over. None: whichever there is."""
        self._send(Command(op="stop", visit=visit))

    def end(self) -> None:
        """Stop the visit at hand and refuse all later ones: the agent was asked to stop, perhaps while it fetched."""
        self._ending.set()
        self.stop()

    def kill(self) -> None:
        if self._process is not None:
            # Its whole session: a compiler that it started, say, goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            if self._process.stdin is not None:
                try:
                    self._process.stdin.close()
                except OSError:
                    pass
            try:
                self._process.wait(timeout=END_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def _send(self, command: Command) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(json.dumps(command.model_dump(mode="json")) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            pass  # it died; whoever waits for its events learns it
        except RuntimeError:
            pass  # a signal came while a command was being written; `train` looks again right after


def _cause(code: int) -> str:
    if code == -9:
        return "killed, most likely because memory ran out"
    return f"signal {-code}" if code < 0 else f"exit status {code}"
