"""Agents by hand: the test decides every step of the straight path, and can do it wrong."""

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load, load_file, save

from fedcybgd.coordinator.sweeper import sweep_leases
from fedcybgd.shared.contract.agents import AgentSelf
from fedcybgd.shared.contract.assignments import DeltaReceipt, LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of, digest_of_file
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from fedcybgd.shared.contract.words import API, ErrorBody
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for

METRICS = TrainMetrics(steps=1, rows=1, tokens=1, loss_first=1, loss_last=1, seconds=1, tokens_per_s=1)
Tensors = dict[str, torch.Tensor]
_numbers = itertools.count()


def fresh(word: str) -> str:
    """A name that no other test uses."""
    return f"{word}-{os.getpid()}-{next(_numbers)}"


def wire(live: LiveCoordinator, key: str | None = None) -> httpx.Client:
    """Bare HTTP under /v1, with any key or none."""
    # No certificates are needed here, and to load them takes longer than most tests.
    return httpx.Client(base_url=live.url + API, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=30, verify=False)


def operator(live: LiveCoordinator) -> httpx.Client:
    return live.operator._http


def refused(answer: httpx.Response, status: int, code: str) -> ErrorBody:
    """The answer is this error, in the form that all errors have, and says something to people."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    body = ErrorBody.model_validate(answer.json())
    assert body.code == code, body
    assert body.message
    return body


def together(number: int, call: Any) -> list[Any]:
    """The results of `call(0)`, `call(1)`, … made at the same time."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(call, range(number)))


def state_of(live: LiveCoordinator, run: str) -> dict[str, Any]:
    """All that bad input must leave as it was: the run, its blocks and their bytes, its assignments."""
    view = live.operator.get(f"/runs/{run}")
    for block in view["blocks"]:
        assert digest_of_file(live.store.path(block["digest"])) == block["digest"]
    fields = ("id", "block", "state", "attempt", "agent", "delta_digest")
    return {
        "run": view["state"],
        "rounds_done": view["rounds_done"],
        "blocks": {b["name"]: (b["version"], b["digest"]) for b in view["blocks"]},
        "assignments": [{f: a[f] for f in fields} for a in live.operator.get(f"/runs/{run}/assignments")],
    }


@contextmanager
def unchanged(live: LiveCoordinator, run: str) -> Iterator[None]:
    before = state_of(live, run)
    yield
    assert state_of(live, run) == before


def sweep(live: LiveCoordinator) -> None:
    """Look at once after what time changes: what did not happen then was not due."""
    sweep_leases(live.settings, live.database, live.app.state.absence)


def versions(live: LiveCoordinator, run: str) -> dict[str, int]:
    return {b["name"]: b["version"] for b in live.operator.get(f"/runs/{run}")["blocks"]}


def events(live: LiveCoordinator, run: str) -> list[str]:
    return [e["code"] for e in live.operator.get(f"/runs/{run}")["events"]]


def last_visit(live: LiveCoordinator, run: str) -> Any:
    return live.operator.get(f"/runs/{run}/assignments")[-1]


class Hand:
    """An enrolled agent whose calls the test makes."""

    def __init__(self, live: LiveCoordinator, name: str | None = None, seen: bool = True) -> None:
        self.name = name or fresh("agent")
        token = live.operator.post("/enrolment-tokens", {})["token"]
        self.http = wire(live)
        self.http.headers[VERSION] = str(SPOKEN)
        answer = self.http.post("/agents", json={"token": token, "name": self.name})
        assert answer.status_code == 201, answer.text
        self.key: str = answer.json()["key"]
        self.http.headers["Authorization"] = f"Bearer {self.key}"
        if seen:
            self.me()

    def me(self) -> AgentSelf:
        return AgentSelf.model_validate(self.http.get("/agents/me").json())

    def claim(self, run: str, wait: float = 0, **request: Any) -> LeasedAssignment | None:
        """Ask for work of one run only, so that tests do not get each other's."""
        answer = self.http.post("/assignments/claim", params={"wait": wait}, json={"runs": [run], **request}, timeout=wait + 30)
        assert answer.status_code in (200, 204), answer.text
        return LeasedAssignment.model_validate(answer.json()) if answer.status_code == 200 else None

    def take(self, run: str, wait: float = 10) -> LeasedAssignment:
        """As an agent does: who is let go before there is work asks again."""
        until = time.monotonic() + wait
        while (assignment := self.claim(run, wait)) is None and (wait := until - time.monotonic()) > 0:
            pass
        assert assignment is not None, f"no work for {self.name}"
        return assignment

    def base(self, assignment: LeasedAssignment) -> dict[str, Tensors]:
        """The blocks that are trained, as they were sent."""
        trained = assignment.train.trained
        digests = {b.block: b.digest for b in assignment.manifest.blocks}
        return {block: self._tensors(assignment, digests[block]) for block in trained}

    def _tensors(self, assignment: LeasedAssignment, digest: str) -> Tensors:
        answer = self.http.get(f"/assignments/{assignment.assignment_id}/shards/{digest}")
        assert answer.status_code == 200, answer.text
        return load(answer.content)

    def delta(self, assignment: LeasedAssignment, value: float | None = None) -> Tensors:
        """A delta with `value` everywhere; by default a small one that no other delta has."""
        value = 0.01 + next(_numbers) * 1e-6 if value is None else value
        return {
            name: torch.full_like(t, value, dtype=torch.float32)
            for tensors in self.base(assignment).values()
            for name, t in tensors.items()
        }

    def put(self, assignment: LeasedAssignment, data: bytes, offset: int = 0, digest: str | None = None) -> httpx.Response:
        """Send bytes of a delta."""
        path = f"/assignments/{assignment.assignment_id}/upload/{digest or digest_of(data)}"
        return self.http.put(path, params={"offset": offset}, content=data)

    def offset(self, assignment: LeasedAssignment, digest: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(f"/assignments/{assignment.assignment_id}/upload/{digest}").json()
        return answer

    def submit(
        self, assignment: LeasedAssignment, digest: str, attempt: int | None = None, steps: int = 1, rows: int = 1
    ) -> httpx.Response:
        """`steps` and `rows` are what it says that it did."""
        metrics = METRICS.model_copy(update={"steps": steps, "rows": rows})
        body = {"attempt": attempt or assignment.attempt, "digest": digest, "metrics": metrics.model_dump(mode="json")}
        return self.http.post(f"/assignments/{assignment.assignment_id}/delta", json=body)

    def send(self, assignment: LeasedAssignment, data: bytes, steps: int = 1, rows: int = 1) -> httpx.Response:
        """Upload and submit."""
        answer = self.put(assignment, data)
        assert answer.status_code == 200, answer.text
        return self.submit(assignment, digest_of(data), steps=steps, rows=rows)

    def deliver(self, assignment: LeasedAssignment, tensors: Tensors | None = None, steps: int = 1, rows: int = 1) -> DeltaReceipt:
        """Upload and submit a good delta."""
        answer = self.send(assignment, save(self.delta(assignment) if tensors is None else tensors), steps, rows)
        assert answer.status_code == 202, answer.text
        return DeltaReceipt.model_validate(answer.json())

    def renew(self, assignment: LeasedAssignment, attempt: int | None = None, **progress: Any) -> httpx.Response:
        body = {"attempt": attempt or assignment.attempt, "progress": progress or None}
        return self.http.post(f"/assignments/{assignment.assignment_id}/renew", json=body)

    def give_back(self, assignment: LeasedAssignment, reason: str, message: str = "", attempt: int | None = None) -> httpx.Response:
        body = {"attempt": attempt or assignment.attempt, "reason": reason, "message": message}
        return self.http.post(f"/assignments/{assignment.assignment_id}/return", json=body)


def run_file(model: str, agents: list[Hand] | str, **more: Any) -> dict[str, Any]:
    """A run that trains the layers of a BERT with three labels; `more` replaces sections, and adds to `schedule`.

    Nothing is compressed unless `more` says so: hands read shards and write deltas as they are, and go as far as they like.
    """
    schedule = {"blocks": ["layers"], "always": ["head"], **more.pop("schedule", {})}
    return {
        "name": fresh("run"), "model": model, "agents": agents if isinstance(agents, str) else [a.name for a in agents],
        "task": {"kind": "text-classification", "labels": 3, "max_length": 32}, "schedule": schedule,
        "compression": {"policy": "none"}, "delta": {"codec": "float32"}, "admission": {"norm_band": None}, **more,
    }  # fmt: skip


def at(hand: Hand, live: LiveCoordinator) -> Hand:
    """The same agent, whose balancer now leads to this coordinator."""
    hand.http.base_url = live.url + "/v1"
    return hand


def start_run(live: LiveCoordinator, model: str, agents: list[Hand] | str, **more: Any) -> str:
    """The name of a new run that is under way."""
    run = live.create_run(run_file(model, agents, **more), start=True)
    assert run["state"] == "running", run["reason"]
    return str(run["name"])


def finish(live: LiveCoordinator, run: str, agents: list[Hand], scale: float = 0.01) -> None:
    """Do all rounds that are left with random deltas, whoever they are meant for."""
    torch.manual_seed(0)
    until = {"completed", "failed", "cancelled"}
    while live.state_of(run) not in until:
        for agent in agents:
            if (assignment := agent.claim(run, wait=0.1)) is not None:
                tensors = {name: torch.randn_like(t) * scale for name, t in agent.delta(assignment).items()}
                agent.deliver(assignment, tensors)


@contextmanager
def one_more_waits(live: LiveCoordinator) -> Iterator[None]:
    """At its end the claim that was made in it waits, beside those that waited before."""
    before = live.operator.get("/status")["waiting_claims"]
    yield
    wait_for(lambda: live.operator.get("/status")["waiting_claims"] > before)


def settled(live: LiveCoordinator, run: str) -> Any:
    """The run once no job of it is left to do."""
    wait_for(lambda: not live.has_jobs(run))
    return live.operator.get(f"/runs/{run}")


def shard_tensors(live: LiveCoordinator, digest: str) -> Tensors:
    return load_file(live.store.path(digest))


def copy_of(folder: Path, target: Path) -> Path:
    """A copy of a model directory, to be spoilt."""
    import shutil

    return Path(shutil.copytree(folder, target))
