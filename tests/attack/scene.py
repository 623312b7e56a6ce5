"""Where attacks happen: a real coordinator, real agents, and a coordinator that was taken over."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from fedcybgd import Coordinator
from fedcybgd.client.connection import Connection
from tests.support import models
from tests.support.hostile import Answer, Asked, FakeServer, serving
from tests.support.processes import ENVIRONMENT
from tests.support.visits import Hand

SAMPLE = json.loads((Path(__file__).parents[1] / "wire" / "samples" / "LeasedAssignment.json").read_text())["full"]
ME = {"agent_id": "agt_" + "0" * 16, "name": "victim", "state": "active", "enrolled_at": "2026-01-01T00:00:00Z", "runs": []}
MODEL = "victim-model"


class Scene:
    """Everything is started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0

    def place(self, word: str) -> Path:
        self._number += 1
        made = self.folder / f"{word}-{self._number}"
        made.mkdir()
        return made

    @cached_property
    def coordinator(self) -> Coordinator:
        return Coordinator.local(self.folder / "coordinator", environment=ENVIRONMENT, sweep_every_s=0.2)

    @property
    def url(self) -> str:
        return self.coordinator.url

    @cached_property
    def operator(self) -> Connection:
        return Connection(self.coordinator.url, self.coordinator.key)

    @cached_property
    def bert(self) -> Path:
        return models.tiny_bert(self.place("bert"))

    @cached_property
    def model(self) -> str:
        return str(self.add_model(MODEL, self.bert)["name"])

    def add_model(self, name: str, source: Path) -> Any:
        """The model, when it is ready or has failed."""
        self.operator.post("/models", {"name": name, "source": str(source)})
        return self.operator.wait(lambda: self.operator.get(f"/models/{name}"), lambda m: m["state"] != "adding", every=0.1, limit=300)

    def create_run(self, spec: dict[str, Any], start: bool = False) -> Any:
        run = self.operator.post("/runs", spec)
        run = self.operator.wait(
            lambda: self.operator.get(f"/runs/{run['id']}"), lambda r: r["prepared"] or r["state"] == "failed", every=0.1, limit=300
        )
        return self.operator.post(f"/runs/{run['id']}/start") if start else run

    def hand(self) -> Hand:
        return Hand(self)  # type: ignore[arg-type]

    def log(self) -> str:
        return (self.folder / "coordinator" / "coordinator.log").read_text()

    def close(self) -> None:
        if "coordinator" in self.__dict__:
            self.coordinator.stop()

    # ---- a coordinator that was taken over, and an honest agent ---------------------------------------------------------

    @contextmanager
    def victim(self, answer: "Taken", settings: str = "", policy: str = "") -> Iterator["Victim"]:
        """A real `fedagent run` that works for a coordinator which says what it likes."""
        home = self.place("victim")
        (home / "rows.jsonl").write_text('{"text": "alpha", "label": 0}\n{"text": "beta", "label": 1}\n')
        with serving(answer) as server:
            key = {"agent_id": ME["agent_id"], "name": "victim", "key": "fca_" + "x" * 43, "coordinator": None}
            (home / "credentials.json").write_text(json.dumps(key))
            (home / "agent.toml").write_text(f'coordinator = "{server.url}"\n[data]\npath = "rows.jsonl"\nruns = ["good-*"]\n{settings}')
            (home / "policy.toml").write_text(policy)
            process = subprocess.Popen(
                [sys.executable, "-m", "fedcybgd.agent.cli", "run", "--home", str(home)],
                env={**os.environ, **ENVIRONMENT}, stdout=(home / "log").open("w"), stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                yield Victim(home, process, server, answer)
            finally:
                process.kill()
                process.wait()


class Taken:
    """Answers of a coordinator that was taken over: one assignment, or whatever a claim is to get."""

    def __init__(self, claim: Answer | None = None, bodies: Answer | None = None, me: Answer | None = None, **changes: Any) -> None:
        """`changes` of the sample assignment; names with two underscores go into a part of it, as in train__steps."""
        said = json.loads(json.dumps(SAMPLE)) | {"run_name": "good-run"}
        for name, value in changes.items():
            part, _, inner = name.rpartition("__")
            (said[part] if part else said)[inner] = value
        self.assignment = said
        self._claim = Answer.json(said) if claim is None else claim
        self._bodies, self._me = bodies, me
        self.claims, self.returned, self.renewed, self.uploaded = 0, list[dict[str, Any]](), 0, 0

    def __call__(self, asked: Asked) -> Answer:
        path = asked.path.split("?")[0]
        if path.endswith("/agents/me"):
            return self._me or Answer.json(ME)
        if path.endswith("/health"):
            return Answer.json({"status": "ok", "version": "1"})
        if path.endswith("/readiness"):
            return Answer(204)
        if path.endswith("/claim"):
            self.claims += 1
            if self.claims > 1 and self._claim.status == 200:
                time.sleep(0.2)
            return self._claim if self.claims <= 3 else Answer(204)
        if path.endswith("/return"):
            self.returned.append(json.loads(asked.body))
        if path.endswith("/renew"):
            self.renewed += 1
            return Answer.json({"lease_seconds": self.assignment["lease_seconds"]})
        if asked.method == "PUT":
            self.uploaded += len(asked.body)
            return Answer.json({"offset": self.uploaded, "complete": False})
        if "/shards/" in path or "/files/" in path:
            return self._bodies or Answer(404)
        return Answer.json({"assignment_id": self.assignment["assignment_id"], "state": "leased", "reason": None, "attempt": 1})


class Victim:
    def __init__(self, home: Path, process: "subprocess.Popen[bytes]", server: FakeServer, taken: Taken) -> None:
        self.home, self.process, self.server, self.taken = home, process, server, taken

    def until(self, look: Any, limit: float = 30) -> bool:
        """Whether it came within its time, and the agent was alive until then."""
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.poll() is None:
            if look():
                return True
            time.sleep(0.05)
        return bool(look())

    def memory(self) -> int:
        """Bytes that its processes have in memory."""
        try:
            mine = psutil.Process(self.process.pid)
            return sum(p.memory_info().rss for p in [mine, *mine.children(recursive=True)])
        except psutil.NoSuchProcess:
            return 0

    def ends(self, limit: float = 15) -> bool:
        """Whether one SIGTERM ends it."""
        self.process.terminate()
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            return False
        return True

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.home.rglob("*") if path.is_file())

    def said(self) -> str:
        return (self.home / "log").read_text()
