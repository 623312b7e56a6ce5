"""The coordinator that `benchmarks.busy_database` measures: its web process alone, without an engine, told to look at itself.

python -m benchmarks.busy_server HOME [DATABASE-URL]     meant to be started by the benchmark
"""

import asyncio
import json
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import Engine, event
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from fedcybgd.coordinator import app as application
from fedcybgd.coordinator.app import create_app
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.sweeper import sweep_leases, tidy

NEVER_S = 1e6
SILENT_AFTER_S = 1800
BEGIN = re.compile(r"\s*(BEGIN|PRAGMA|SAVEPOINT|RELEASE)")
WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|BEGIN IMMEDIATE)")


class NoJobs:
    """In the engine's place: jobs are queued and stay so."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def wake(self, lanes: object) -> None:
        pass


class Counted:
    """Answers `/busy/counters`, and has the sweeper's work done at `/busy/sweep` and `/busy/tidy`; all else is the coordinator's."""

    def __init__(self, app: Any) -> None:
        self._app: ASGIApp = app
        self._state = app.state
        self.queries = self.writes = 0
        event.listen(Engine, "before_cursor_execute", self._count)

    def _count(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.queries += BEGIN.match(statement) is None
        self.writes += WRITES.match(statement) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if not path.startswith("/busy/"):
            await self._app(scope, receive, send)
            return
        counters = {"cpu": time.process_time(), "queries": self.queries, "writes": self.writes}
        state = self._state
        if path == "/busy/sweep":
            await run_in_threadpool(sweep_leases, state.settings, state.database, state.absence)
        elif path == "/busy/tidy":
            await run_in_threadpool(tidy, state.settings, state.database, state.store, utcnow())
        body = json.dumps(counters).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})


def main() -> None:
    # Nobody else may do anything while a request is measured; and agents that are not asked for anything do not fall silent.
    url = sys.argv[2] if len(sys.argv) > 2 else None
    settings = Settings(home=Path(sys.argv[1]), database_url=url, sweep_every_s=NEVER_S, silent_after_s=SILENT_AFTER_S)
    application.LocalJobs = NoJobs  # type: ignore[assignment,misc]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    server = uvicorn.Server(uvicorn.Config(Counted(create_app(settings)), log_level="warning", access_log=False, timeout_keep_alive=600))
    asyncio.run(server.serve([listener]))


if __name__ == "__main__":
    main()
