"""Part of `benchmarks.overhead`: from the last byte of a delta to the answer of the next claim, seen from the agents' side."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file, save_file

from benchmarks.system import System
from fedcybgd.agent.client import Client
from fedcybgd.shared.contract.agents import ClaimRequest, EnrolRequest
from fedcybgd.shared.contract.assignments import DeltaSubmission, LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.words import API

METRICS = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1)
CHUNK = 1 << 20


class Hand:
    """An agent that sends deltas made by hand, at once."""

    def __init__(self, system: System, name: str) -> None:
        token = system.coordinator.token()
        self.name = name
        self._key = Client(system.url).enrol(EnrolRequest(token=token, name=name)).key
        Client(system.url, self._key).me()  # who was never seen takes no part in a run
        self._client = Client(system.url, self._key)
        self._http = httpx.Client(base_url=system.url + API, headers={"Authorization": f"Bearer {self._key}"}, timeout=60)
        self.answered_at = 0.0
        self.assignment: LeasedAssignment | None = None
        self._thread = threading.Thread()

    def ask(self) -> None:
        """Begin to wait for work."""
        self._thread = threading.Thread(target=self._claim)
        self._thread.start()

    def _claim(self) -> None:
        self.assignment = self._client.claim(ClaimRequest(runs=["*"]), wait=30)
        self.answered_at = time.monotonic()

    def has_work(self) -> bool:
        self._thread.join()
        return self.assignment is not None

    def make_delta(self, folder: Path) -> Path:
        """Random numbers in the place of what training would change."""
        assert self.assignment is not None
        trained = self.assignment.train.trained
        delta = {}
        for ref in self.assignment.manifest.blocks:
            if ref.block in trained:
                path = folder / "block.safetensors"
                with self._client.shard(self.assignment.assignment_id, ref.digest, 0) as answer:
                    path.write_bytes(b"".join(answer.iter_raw()))
                delta |= {name: 1e-4 * torch.randn(t.shape) for name, t in load_file(path).items() if t.is_floating_point()}
        save_file(delta, folder / f"{self.name}.safetensors")
        return folder / f"{self.name}.safetensors"

    def send(self, delta: Path) -> float:
        """Upload and submit; returns when the last byte had left."""
        assert self.assignment is not None
        digest, size = digest_of_file(delta), delta.stat().st_size
        sent = 0.0

        def body() -> Iterator[bytes]:
            nonlocal sent
            with delta.open("rb") as file:
                yield from iter(lambda: file.read(CHUNK), b"")
            sent = time.monotonic()

        path = f"/assignments/{self.assignment.assignment_id}/upload/{digest}"
        self._http.put(path, content=body(), headers={"Content-Length": str(size)}).raise_for_status()
        submission = DeltaSubmission(attempt=self.assignment.attempt, digest=digest, metrics=METRICS)
        self._client.submit(self.assignment.assignment_id, submission)
        return sent


def turnarounds(system: System, task: dict[str, Any], folder: Path, cycles: int = 10) -> list[float]:
    """Milliseconds, one for each change from one agent to the other; the blocks are layers of 1.8M parameters."""
    hands = [Hand(system, f"hand-{i}") for i in range(2)]
    run_id = system.create_run({
        "name": "turnaround", "model": "minilm", "task": task, "agents": [hand.name for hand in hands],
        "schedule": {"cycles": cycles, "agents": "fixed", "blocks": ["layers.2-5"], "always": ["pooler", "head"]},
        "delta": {"codec": "float32"},
    })  # fmt: skip
    sender, waiter = hands
    sender.ask()
    system.start(run_id)
    found: list[float] = []
    while sender.has_work():
        delta = sender.make_delta(folder)
        waiter.ask()
        time.sleep(0.2)  # its claim is on its way, as in life: visits take longer
        last_byte = sender.send(delta)
        if len(found) == cycles * 4 - 1:
            break
        assert waiter.has_work(), "the next claim was not answered"
        found.append(1000 * (waiter.answered_at - last_byte))
        sender, waiter = waiter, sender
    system.wait_for(run_id)
    return found
