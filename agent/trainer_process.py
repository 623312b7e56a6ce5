"""The daemon's handle on the training process: starts it, keeps it warm, notices when it dies."""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable

from pydantic import ValidationError

from agent.errors import LeaseGone, StopRequested, VisitFailed
from agent.messages import Command, TrainerEvent, TrainRequest
from agent.settings import Config
from shared.protocol import Progress, TrainMetrics

log = logging.getLogger("fedagent.trainer")


class TrainerProcess:
    """One child process; started ahead of need, and again after it died."""

    def __init__(self, config: Config) -> None:
        limit = int((config.limits.memory_gb or 0) * 1e9)
        arguments = [config.device.kind, str(config.device.threads), str(limit), config.training.model_dump_json()]
        self._command = [sys.executable, "-m", "agent.trainer", *arguments]
        # Threads that wait for each other by spinning lose all their time as soon as another process wants a core.
        self._environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if limit:
            # Freed tensors go back to the system at once: by default the heap keeps holes of up to half of the peak. It costs time,
            # so only an agent that must save memory does it.
            self._environment.setdefault("MALLOC_MMAP_THRESHOLD_", "262144")
        if config.device.threads:
            self._environment["OMP_NUM_THREADS"] = str(config.device.threads)
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
            self.stop()  # asked for a moment ago: the visit that was just begun does not know it
        while True:
            event = self._events.get()
            if event is None:
                code = self._process.wait() if self._process is not None else 0
                raise VisitFailed("trainer_died", f"the training process died ({_cause(code)}); a new one is started")
            match event.event:
                case "progress":
                    assert event.progress is not None
                    report(event.progress)
                case "done":
                    assert event.metrics is not None
                    return event.metrics
                case "failed":
                    raise VisitFailed(event.reason or "other", event.message)
                case "stopped":
                    if lost.is_set():
                        raise LeaseGone("the lease is gone")
                    raise StopRequested
                case "ready":
                    pass

    def stop(self) -> None:
        """Ask the visit at hand to stop before its next step; from any thread, and harmless when there is none."""
        self._send(Command(op="stop"))

    def end(self) -> None:
        """Stop the visit at hand and refuse all later ones: the agent was asked to stop, perhaps while it fetched."""
        self._ending.set()
        self.stop()

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
