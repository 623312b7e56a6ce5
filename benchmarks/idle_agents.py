"""What a thousand idle agents cost the web process, and how soon a new assignment reaches its agent among them.

    python -m benchmarks.idle_agents [--json FILE] [--agents N] [--seconds S] [--coordinators N] [--come-a-second N]

The agents are connections of one other process, each with a key of its own, a long poll of 25 seconds and whatever the answer
brings. While they wait, the processor time and the memory of the web process are read. Then two runs are started: in one each
visit is meant for one agent, in the other it is for whoever comes first. The time runs from the transaction that opens an
assignment (its own clock, before the commit) to the moment when the agent has its answer.

With several coordinators on one PostgreSQL server each has its share of the agents, and a process of them; they are watched once more
while every claim is let go for a new run, and once more while that waits for an agent that does not come.
"""

import contextlib
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save
from sqlalchemy import select

from benchmarks import banking77
from benchmarks.crowd import LIMITS, CrowdRequest, daemon_of
from benchmarks.report import arguments, finish, percentile, spread
from benchmarks.system import ENVIRONMENT, System, cpu_of
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from tests.support.postgres import PostgresServer

TARGETS = {"cpu_percent": 20, "claim_ms_p99": 100}
TASK = {"kind": "text-classification", "labels": 2}
VISITS = 120
"""Of each of the two runs."""
SCHEDULES = {
    "meant for one agent": {"agents": "rotating", "cycles": VISITS // 2, "blocks": ["layers"], "always": ["pooler", "head"]},
    "for whoever comes first": {"agents": "first_come", "cycles": VISITS // 2, "blocks": ["layers"], "always": ["pooler", "head"]},
}


def enrol(database: Database, count: int, called: str = "agent", new: bool = False) -> list[str]:
    """The private keys of `count` agents, made in one transaction. They are known as those that were there before: nothing is new of them.

    `new`: only their enrolment is known.
    """
    given = [new_private_key() for _ in range(count)]
    with database.transaction() as session:
        session.add_all(
            Agent(id=keys.new_id("agt"), name=f"{called}-{i:05}", key_hash=signer.key_id, public_key=signer.public_key, state=AgentState.ENROLLED,
                  device=DeviceInfo(), limits=DeclaredLimits() if new else LIMITS, daemon=None if new else daemon_of(key), version="",
                  enrolled_at=utcnow())
            for i, (key, signer) in enumerate(zip(given, map(Signer, given), strict=True))
        )  # fmt: skip
    return given


def deltas(database: Database, run_id: str, folder: Path) -> dict[str, str]:
    """Block → file with a small random delta of the block and of all that is trained along with it."""
    with database.reading() as session:
        blocks = {block.name: block.tensors for block in queries.blocks_of(session, run_id, tensors=True)}
    along = blocks["pooler"] + blocks["head"]
    made = {}
    for name in ("layers.0", "layers.1"):
        path = folder / f"{name}.safetensors"
        path.write_bytes(save({t.name: 1e-4 * torch.randn(t.shape) for t in blocks[name] + along}))
        made[name] = str(path)
    return made


@contextlib.contextmanager
def crowd(folder: Path, request: CrowdRequest) -> Iterator[psutil.Process]:
    """The agents, as a process; it notes each assignment that arrives in the file that it was asked to."""
    file = folder / f"{Path(request.arrivals).stem}.json"
    file.write_text(request.model_dump_json())
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.crowd", str(file)], env={**os.environ, **ENVIRONMENT})
    try:
        yield psutil.Process(process.pid)
        assert process.poll() is None, "the agents' process ended"
    finally:
        process.kill()
        process.wait()


def wait_until_waiting(system: System, count: int) -> None:
    """Return when (nearly) all agents are in their long poll; some are always between two of them."""
    system.client.wait(lambda: system.client.status().waiting_claims, lambda n: n >= 0.98 * count, every_s=1, timeout_s=600)


@dataclass
class Watched:
    """All that takes processor time for the agents: who, and its processes."""

    system: System
    others: dict[str, Callable[[], list[psutil.Process]]]
    before: list[int]
    """bytes of each web process before anybody came"""
    each: int
    """agents of a coordinator"""
    _so_far: dict[str, dict[int, float]] = field(default_factory=dict)

    def for_(self, seconds: float, what: str) -> tuple[float, float]:
        """Percent of one core that the web process takes, and kilobytes of its memory for each agent: the most of any."""
        began, cpu = time.monotonic(), self._cpu()
        parts = []
        for _ in range(6):
            at, was = time.monotonic(), self._cpu()
            time.sleep(seconds / 6)
            parts.append([100 * (now - then) / (time.monotonic() - at) for now, then in zip(self._cpu(), was, strict=True)])
        took = time.monotonic() - began
        shares = [100 * (now - then) / took for now, then in zip(self._cpu(), cpu, strict=True)]
        kilobytes = []
        print(
            f"{what}, {seconds:.0f} s, load {os.getloadavg()[0]:.1f}; percent of one core (parts of the time: least / median / greatest):"
        )
        for number, web in enumerate(self.system.webs):
            memory = web.memory_info().rss
            kilobytes.append((memory - self.before[number]) / self.each / 1e3)
            in_parts = spread([part[number] for part in parts])
            print(
                f"  web process {number}: {shares[number]:.1f} % ({in_parts}), {memory / 1e6:.0f} MB, {kilobytes[number]:.1f} kB an agent"
            )
        webs = len(self.system.webs)
        for name, share in zip(self.others, shares[webs:], strict=True):
            print(f"  {name}: {share:.1f} %", flush=True)
        return max(shares[:webs]), max(kilobytes)

    def _cpu(self) -> list[float]:
        return [cpu_of(web) for web in self.system.webs] + [self._spent(name) for name in self.others]

    def _spent(self, name: str) -> float:
        """With what those took that have ended since, as connections of a database do."""
        spent = self._so_far.setdefault(name, {})
        for process in self.others[name]():
            with contextlib.suppress(psutil.NoSuchProcess):
                spent[process.pid] = cpu_of(process)
        return sum(spent.values())


def arrivals_ms(database: Database, run_id: str, noted: Sequence[Path]) -> list[float]:
    """From opening to arrival, of every assignment of a run."""
    arrived = {a["assignment_id"]: a["at"] for file in noted for a in map(json.loads, file.read_text().splitlines())}
    with database.reading() as session:
        rows = session.execute(select(Assignment.id, Assignment.waiting_since, Assignment.attempt).where(Assignment.run_id == run_id)).all()
    assert all(row.attempt == 1 for row in rows)
    return [1000 * (arrived[row.id] - row.waiting_since.timestamp()) for row in rows]


@contextlib.contextmanager
def database_of(coordinators: int, folder: Path) -> Iterator[tuple[PostgresServer | None, dict[str, Any]]]:
    """What several coordinators need that one does not: a server, and settings."""
    if coordinators == 1:
        yield None, {}
        return
    server = PostgresServer()
    try:
        yield server, {"database_url": server.new_database(), "shared": folder / "shared", "threads": 20, "timeout_s": 300}
    finally:
        server.stop()


def await_nobody(system: System, database: Database) -> None:
    """Start a run that is open to one agent, which was there a moment ago and does not come."""
    enrol(database, 1, "the-absent")  # the last one by name: the other runs count it in, but do not get as far
    with database.transaction() as session:
        absent = session.scalars(select(Agent).where(Agent.name == "the-absent-00000")).one()
        absent.state, absent.last_seen_at = AgentState.ACTIVE, utcnow()
    system.start(prepare(system, SCHEDULES["meant for one agent"], {"agents": ["the-absent-00000"]}))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=1000, help="in all (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long they are watched idle (default: %(default)s)")
    parser.add_argument("--new", action="store_true", help="agents of which nothing but their enrolment is known")
    parser.add_argument("--coordinators", type=int, default=1, help="more than one: on PostgreSQL, needs initdb (default: %(default)s)")
    parser.add_argument(
        "--come-a-second", type=float, default=100, help="agents that come to a coordinator at first (default: %(default)s)"
    )
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file, here and in the coordinator
    each = options.agents // options.coordinators
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)))
        server, settings = stack.enter_context(database_of(options.coordinators, folder))
        system = stack.enter_context(System(folder / "system", {}, options.coordinators, **settings))
        system.add_model("tiny", banking77.tiny(folder / "tiny"))
        database = Database(settings.get("database_url", f"sqlite:///{system.home / 'coordinator.db'}"))
        stack.callback(database.close)
        given = enrol(database, options.coordinators * each, new=options.new)
        runs = {label: prepare(system, schedule) for label, schedule in SCHEDULES.items()}
        files = deltas(database, next(iter(runs.values())), folder)
        noted = [folder / f"arrivals-{number}.jsonl" for number in range(options.coordinators)]
        memory, spent, began = [web.memory_info().rss for web in system.webs], sum(map(cpu_of, system.webs)), time.monotonic()
        agents = [
            stack.enter_context(crowd(folder, CrowdRequest(
                url=one.url, keys=given[number::options.coordinators], deltas=files, arrivals=str(noted[number]), come_a_s=options.come_a_second
            )))
            for number, one in enumerate(system.coordinators)
        ]  # fmt: skip
        others = {"all agents": lambda: agents} | ({} if server is None else {"database": server.processes})
        watched = Watched(system, others, memory, each)
        wait_until_waiting(system, len(given))
        came_ms = 1000 * (sum(map(cpu_of, system.webs)) - spent) / len(given)
        print(f"all wait after {time.monotonic() - began:.0f} s, {came_ms:.2f} ms of the web processes each, load {os.getloadavg()[0]:.1f}")
        percent, kilobytes = watched.for_(options.seconds, "idle")
        figures = {"agents": len(given), "came_ms": came_ms, "cpu_percent": percent, "kilobytes_each": kilobytes}
        if options.coordinators > 1:
            await_nobody(system, database)
            watched.for_(options.seconds, "every claim is let go for a new run")
            wait_until_waiting(system, len(given))
            figures["cpu_percent_awaited"], _ = watched.for_(options.seconds, "idle, and an agent is awaited")
        times = []
        for label, run_id in runs.items():
            system.start(run_id)
            system.wait_for(run_id)
            found = arrivals_ms(database, run_id, noted)
            times += found
            print(
                f"{len(found)} assignments {label}: {spread(found, 'ms')} (least / median / greatest), p99 {percentile(found, 99):.1f} ms"
            )
    print(f"all {len(times)} assignments: median {statistics.median(times):.1f} ms, p99 {percentile(times, 99):.1f} ms")
    finish({**figures, "claim_ms_p50": statistics.median(times), "claim_ms_p99": percentile(times, 99)}, TARGETS, options.json)


def prepare(system: System, schedule: dict[str, Any], more: dict[str, Any] | None = None) -> str:
    return system.create_run({
        "name": f"{schedule['agents']}-{secrets.token_hex(2)}", "model": "tiny", "task": TASK, "schedule": schedule, "train": {"steps": 1},
        "delta": {"codec": "float32"}, **(more or {}),
    })  # fmt: skip


if __name__ == "__main__":
    main()
