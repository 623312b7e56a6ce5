"""What it costs the web process when agents ask for work for the first time, against their later claims.

    python -m benchmarks.first_claims [--json FILE] [--agents N] [--at-once N] [--postgres]

New agents, each with a key and a connection of its own, claim without waiting; they do so once more, as idle agents do all the time; and
a third time with the word of another daemon, as after a restart of it. Then the coordinator is started again, and they come back.
Processor time is that of the web process, and of the database where it is one of its own. No run is there: there is nothing to lease.
"""

import asyncio
import contextlib
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.crowd import CLAIM, Connection, NotNow
from benchmarks.idle_agents import enrol
from benchmarks.report import arguments, finish
from benchmarks.system import System, cpu_of
from fedcybgd.coordinator.db.base import Database
from tests.support.postgres import PostgresServer

FIRST, LATER, RESTARTED, BACK = "first", "later", "daemon_restarted", "coordinator_restarted"


async def claims(connections: list[Connection], at_once: int) -> int:
    """One claim of each; returns how many had to ask once more."""
    again, lane = 0, asyncio.Semaphore(at_once)

    async def one(connection: Connection) -> None:
        nonlocal again
        async with lane:
            while True:
                try:
                    assert await connection.call("POST", "/assignments/claim?wait=0", CLAIM) is None
                    return
                except (OSError, EOFError, NotNow):
                    again += 1
                    connection.close()
                    await asyncio.sleep(0.1)

    await asyncio.gather(*map(one, connections))
    return again


async def measure(system: System, server: PostgresServer | None, keys: list[str], at_once: int) -> dict[str, float]:
    address = urlsplit(system.url)
    assert address.hostname
    assert address.port
    connections = [Connection(address.hostname, address.port, key) for key in keys]
    figures: dict[str, float] = {}
    for what in (FIRST, LATER, RESTARTED, BACK):
        if what == RESTARTED:
            for connection in connections:
                connection.daemon = connection.daemon[::-1]
        if what == BACK:
            for connection in connections:
                connection.close()
            system.coordinator.stop()
            system.coordinator.start()
            system.wait_until_idle()
        process = psutil.Process(system.coordinator.pid)
        web, database, began = cpu_of(process), _spent(server), time.monotonic()
        again = await claims(connections, at_once)
        took = time.monotonic() - began
        await asyncio.sleep(0.5)  # what a commit brings about
        figures[f"{what}_ms"] = 1000 * (cpu_of(process) - web) / len(keys)
        text = f"{what:22} {figures[f'{what}_ms']:6.2f} ms of the web process"
        if server is not None:
            figures[f"{what}_database_ms"] = 1000 * (_spent(server) - database) / len(keys)
            text += f", {figures[f'{what}_database_ms']:.2f} of the database"
        print(f"{text}; {len(keys) / took:.0f} a second, {again} asked once more, load {os.getloadavg()[0]:.1f}", flush=True)
    for connection in connections:
        connection.close()
    return figures


def _spent(server: PostgresServer | None) -> float:
    """Of its processes that live: connections of a pool do as long as the coordinator."""
    spent = 0.0
    for process in server.processes() if server is not None else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            spent += cpu_of(process)
    return spent


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--at-once", type=int, default=8, help="claims on their way at the same time (default: %(default)s)")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL, needs initdb")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)))
        server = PostgresServer() if options.postgres else None
        if server is not None:
            stack.callback(server.stop)
        settings: dict[str, Any] = {"database_url": server.new_database(), "shared": folder / "shared"} if server is not None else {}
        system = stack.enter_context(System(folder / "system", {}, **settings))
        database = Database(settings.get("database_url", f"sqlite:///{system.home / 'coordinator.db'}"))
        stack.callback(database.close)
        keys = enrol(database, options.agents, new=True)
        figures = asyncio.run(measure(system, server, keys, options.at_once))
    finish(figures | {"first_to_later": figures[f"{FIRST}_ms"] / figures[f"{LATER}_ms"]}, {}, options.json)


if __name__ == "__main__":
    main()
