"""The daemon's handle on the training process: starts it, keeps it warm, notices when it dies."""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from pydantic import ValidationError

from fedcybgd.agent.device import CARD_ORDER
from fedcybgd.agent.errors import LeaseGone, StopRequested, VisitFailed
from fedcybgd.agent.messages import Command, TrainerEvent, TrainRequest
from fedcybgd.agent.settings import Config
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.training import TrainMetrics

log = logging.getLogger("fedagent.trainer")
LOOK_EVERY_S = 1.0
SILENT_S = 300.0
"""The process says that it lives every few seconds; one that says nothing for so long is stopped, or its machine is."""
STOP_WITHIN_S = 20.0
"""A service manager kills all of us after 30."""


class Watch:
    """Whether the training process still gets somewhere. Time that the machine sleeps does not count."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._heard = self._moved = time.monotonic()
        self._asked: float | None = None

    def heard(self, event: TrainerEvent) -> None:
        self._heard = time.monotonic()
        if event.event != "alive":
            self._moved = self._heard

    def stalled(self) -> float | None:
        """For how many seconds nothing has moved, if that is too long; None while all is well."""
        now = time.monotonic()
        silent, still = now - self._heard, now - self._moved
        return max(silent, still) if silent > min(SILENT_S, self._stall_s) or still > self._stall_s else None

    def heeds_no_stop(self) -> bool:
        """Whether a stop that was asked for is overdue; asking counts from the first call."""
        if self._asked is None:
            self._asked = time.monotonic()
        return time.monotonic() - self._asked > STOP_WITHIN_S


class TrainerProcess:
    """One child process; started ahead of need, and again after it died."""

    def __init__(self, config: Config) -> None:
        limit = int((config.limits.memory_gb or 0) * 1e9)
        arguments = [config.device.kind, str(config.device.threads), str(limit), config.training.model_dump_json()]
        self._command = [sys.executable, "-m", "fedcybgd.agent.trainer", *arguments]
        # Threads that wait for each other by spinning lose all their time as soon as another process wants a core.
        self._environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
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
        self._ending = threading.Event()

    def start(self) -> None:
        """Start the process if it does not run; it imports torch while the daemon asks for work."""
        if self._process is not None and self._process.poll() is None:
            return
        self._events = queue.Queue()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment, start_new_session=True
        )
        threading.Thread(target=self._listen, args=(self._process, self._events), daemon=True).start()

    @staticmethod
    def _listen(process: "subprocess.Popen[str]", events: "queue.Queue[TrainerEvent | None]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                events.put(TrainerEvent.model_validate_json(line))
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
        self.start()
        self._send(Command(op="train", request=request))
        if self._ending.is_set() or lost.is_set():
            self.stop(request.visit)  # asked for a moment ago: the visit that was just begun does not know it
        watch = Watch(self._stall_s)
        while True:
            try:
                event = self._events.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                self._look_after(watch, lost)
                continue
            if event is None:
                code = self._process.wait() if self._process is not None else 0
                raise VisitFailed("trainer_died", f"the training process died ({_cause(code)}); a new one is started")
            watch.heard(event)
            if event.event in ("ready", "alive") or event.visit != request.visit:
                self._look_after(watch, lost)
                continue
            match event.event:
                case "progress":
                    assert event.progress is not None
                    report(event.progress)
                case "done":
                    assert event.metrics is not None
                    return event.metrics
                case "failed":
                    raise VisitFailed(event.reason or "other", event.message, event.facts.text() if event.facts else None)
                case "stopped":
                    if self._ending.is_set():
                        raise StopRequested
                    raise LeaseGone("the lease is gone")

    def _look_after(self, watch: Watch, lost: threading.Event) -> None:
        """End the process if it hangs, or does not heed a stop: what holds it up may never come back."""
        if self._ending.is_set() or lost.is_set():
            if not watch.heeds_no_stop():
                return
            self.kill()
            if self._ending.is_set():
                raise StopRequested
            raise LeaseGone("the lease is gone; the training process did not stop by itself")
        if (seconds := watch.stalled()) is not None:
            self.kill()
            text = f"no step ended for {seconds:.0f} s (limits.stall_s); the training process was ended, and a new one is started"
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
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            if self._process.stdin is not None:
                try:
                    self._process.stdin.close()
                except OSError:
                    pass
            try:
                self._process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                self._process.kill()

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
