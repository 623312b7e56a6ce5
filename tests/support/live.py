"""A coordinator with real HTTP, a real migrated database and the real engine, in threads of the test process.

The only difference to `fedcoord serve` is that the engine's processes are threads here: a process takes ten seconds to
import torch. Tests in `e2e` run the real processes.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter
from sqlalchemy import select

from fedcybgd.agent.client import Client
from fedcybgd.client.connection import Connection
from fedcybgd.coordinator.app import create_app
from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.parts import MakeParts, Parts, local
from fedcybgd.coordinator.places import place_of
from fedcybgd.coordinator.serve import Server, configured, prepare_home
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.read.status import PENDING
from fedcybgd.coordinator.services.states import runs
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import open_place
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.coordinator.walls.rates import Rate
from fedcybgd.coordinator.walls.rules import HowOften
from fedcybgd.shared.contract.agents import DeviceInfo, EnrolRequest
from tests.support.engines import EngineThread
from tests.support.migrated import begin_with_schema
from tests.support.processes import wait_for

OFTEN = HowOften(*[Rate(1e9, 1e9)] * 5)
"""Tests ask faster than anybody else does."""
LOOKS_S, RESTS_S = 0.25, 1.0
"""Between two looks for what time changes, while a test uses the coordinator and while none does: ten a second took 7 % of a core."""


def threads(settings: Settings, database: Database) -> Parts:
    """As `fedcoord serve` has them, but for the engines."""
    return replace(local(settings, database), new_engine=partial(EngineThread, open_place(place_of(settings))))


class LiveCoordinator:
    def __init__(
        self, home: Path, database_url: str | None = None, parts: MakeParts | None = None, bounds: HowOften | None = None, **settings: Any
    ) -> None:
        self.settings = Settings(home=home, database_url=database_url, **{"sweep_every_s": LOOKS_S, **settings})
        begin_with_schema(self.settings.url)
        prepare_home(self.settings)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.app = create_app(self.settings, parts or threads, bounds or OFTEN)
        config = configured(self.app, self.settings.model_copy(update={"log_level": "WARNING"}))
        config.timeout_graceful_shutdown = 2
        self._server = Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,method-assign]
        # That uvicorn has started is not enough: it listens a moment later.
        ready = threading.Event()
        self._server.on_ready = ready.set
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()
        until = time.monotonic() + 60
        while not ready.wait(0.02):
            assert time.monotonic() < until, "the coordinator did not start"
            assert self._thread.is_alive(), "the coordinator stopped at once"
        with self.database.transaction() as session:
            self.operator_key = operators.recover(session, operators.FIRST, utcnow())
        self.operator = Connection(self.url, self.operator_key)

    @property
    def database(self) -> Database:
        database: Database = self.app.state.database
        return database

    @property
    def store(self) -> LocalBlobStore:
        store: LocalBlobStore = self.app.state.store
        return store

    def free_threads(self) -> bool:
        """Whether a request that needs a thread would get one."""
        threads: CapacityLimiter = self.app.state.threads
        return threads.borrowed_tokens < threads.total_tokens

    def enrol(self, name: str, url: str = "") -> Client:
        """A client with the key of a new agent, which finds the coordinator at `url`."""
        token = self.operator.post("/enrolment-tokens", {})["token"]
        answer = Client(self.url).enrol(EnrolRequest(token=token, name=name, device=DeviceInfo(), version="test"))
        client = Client(url or self.url, answer.key)
        client.me()  # who was never seen takes no part in a run
        return client

    def add_model(self, name: str, folder: Path) -> Any:
        self.operator.post("/models", {"name": name, "source": str(folder)})
        model = self.operator.wait(lambda: self.operator.get(f"/models/{name}"), lambda m: m["state"] != "adding", every=0.05, limit=60)
        assert model["state"] == "ready", model["reason"]
        return model

    def create_run(self, spec: dict[str, Any], start: bool = False) -> Any:
        run = self.operator.post("/runs", spec)
        wait_for(lambda: self._is_prepared(run["id"]))
        return self.operator.post(f"/runs/{run['id']}/start") if start else self.operator.get(f"/runs/{run['id']}")

    # A view of a run is ten times as much work as what is waited for, and is asked for only once that is there.

    def _is_prepared(self, run_id: str) -> bool:
        with self.database.reading() as session:
            run = session.get_one(Run, run_id)
            return run.prepared or run.state == RunState.FAILED

    def state_of(self, name: str) -> str:
        """Of a run."""
        with self.database.reading() as session:
            return str(queries.run_by_name(session, name).state)

    def has_jobs(self, name: str) -> bool:
        """Whether a job of the run is left to do."""
        with self.database.reading() as session:
            jobs = queries.job_counts(session, queries.run_by_name(session, name).id)
            return any(jobs[state].total() for state in PENDING)

    def look_every(self, used: bool) -> None:
        self.settings.sweep_every_s = LOOKS_S if used else RESTS_S

    @contextmanager
    def tidied(self) -> Iterator[None]:
        """Runs that are begun meanwhile are over afterwards: each that goes on is looked after at every look, and there would be hundreds."""
        with self.database.reading() as session:
            before = set(session.scalars(select(Run.id)))
        yield
        with self.database.transaction() as session:
            for run in session.scalars(select(Run).where(Run.id.not_in(before))):
                if not RUN.is_final(run.state):
                    runs.cancel(run, utcnow())
            signals.openings_changed(session)

    def stop(self) -> None:
        self.app.state.waiting.close()
        self.app.state.feed.close()
        self._server.should_exit = True
        self._thread.join(timeout=15)
