"""What each request costs the coordinator when its database is full: 10,000 agents, 10,000 rounds of a model of 83 blocks.

    python -m benchmarks.busy_database [--json FILE] [--agents N] [--rounds N] [--blocks N] [--database-url URL] [--only TEXT]

A database is filled with the history of one long run (`benchmarks/busy_seed.py`), then a real server process answers one request at
a time. Counted are its statements, those of them that write, the processor time of its process, and the bytes of the answer; the
figures are medians of several rounds of the same request. The engine is left out: nobody else does anything meanwhile. "beyond" is
what a request costs more than one that does nothing (`GET /v1/health`): the rest is HTTP.
"""

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from benchmarks import busy_seed
from benchmarks.busy_model import agent_id, identifier
from benchmarks.busy_seed import ABSENT, BIG, DRAFT, OLD, WAVE, Seed, Seeded
from benchmarks.report import arguments
from benchmarks.system import ENVIRONMENT
from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from fedcybgd.shared.contract.words import API

ROUTE = {"cpu_ms": 20.0}
LEASE = {"cpu_ms": 30.0, "queries": 30.0}
IDLE = {"beyond_ms": 0.5, "writes": 0.0}
"""Half a millisecond beyond what HTTP itself costs on this machine, at this moment: `GET /v1/health`, which does nothing."""
SWEEP = {"cpu_ms": 10.0}
PAGE = {"cpu_ms": 50.0, "bytes": 120_000.0}
"""With its style sheet and script, of 19 kB, a page is no more than 150 kB at first."""
BATCHES, BATCH_S, SLOW_S = 5, 0.2, 2.0
ONCE: dict[str, int] = {"rounds": 1, "times": 1}
CLAIM = {"runs": ["*"]}


@dataclass
class Figure:
    name: str
    queries: float
    writes: float
    cpu_ms: float
    beyond_ms: float
    """what it costs more than a request that does nothing"""
    bytes: int
    target: dict[str, float] = field(default_factory=dict)

    def missed(self) -> list[str]:
        return [f"{what} ≤ {most:g}" for what, most in self.target.items() if getattr(self, what) > most]


class Server:
    """The measured process, over one connection."""

    def __init__(self, home: Path, database_url: str | None, seeded: Seeded) -> None:
        command = [sys.executable, "-m", "benchmarks.busy_server", str(home), *([database_url] if database_url else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT})
        assert self._process.stdout is not None
        self._connection = http.client.HTTPConnection("127.0.0.1", int(self._process.stdout.readline()), timeout=1200)
        self._key, self.cookie = seeded.operator_key, ""
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                if self.raw("GET", f"{API}/health")[0] == 200:
                    break
            assert time.monotonic() < until, "the server does not answer"
            self._connection.close()
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def raw(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("set-cookie", "")

    def call(self, method: str, path: str, body: Any = None, key: str | None = None) -> bytes:
        """The answer's body; an error ends the benchmark."""
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key or self._key}", "Content-Type": "application/json", VERSION: str(SPOKEN)}
        status, answer, _ = self.raw(method, API + path, content, headers)
        assert status < 300, f"{method} {path}: {status} {answer[:500].decode()}"
        return answer

    def log_in(self) -> None:
        _, page, form_cookie = self.raw("GET", "/admin")
        form = page.decode().partition('name="form" value="')[2].partition('"')[0]
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": form_cookie.partition(";")[0]}
        self.cookie = self.raw("POST", "/admin", f"key={self._key}&form={form}".encode(), headers)[2].partition(";")[0]

    def page(self, path: str) -> bytes:
        status, answer, _ = self.raw("GET", path, headers={"Cookie": self.cookie})
        assert status == 200, path
        return answer

    def scrape(self) -> bytes:
        status, answer, _ = self.raw("GET", "/metrics", headers={"Authorization": f"Bearer {self._key}"})
        assert status == 200, answer[:500].decode()
        return answer

    def counters(self, path: str = "counters") -> dict[str, float]:
        found: dict[str, float] = json.loads(self.raw("GET", f"/busy/{path}")[1])
        return found


class Bench:
    def __init__(self, server: Server, only: str) -> None:
        self.server, self._only = server, only
        self.figures: list[Figure] = []
        self._nothing = self._http_ms = 0.0
        self._nothing = statistics.median(self._batch(lambda: None, 1)["cpu"] for _ in range(50))

    def _batch(self, call: Callable[[], Any], times: int) -> dict[str, float]:
        before = self.server.counters()
        for _ in range(times):
            call()
        after = self.server.counters()
        spent = {name: (after[name] - before[name]) for name in before}
        spent["cpu"] -= self._nothing
        return {name: value / times for name, value in spent.items()}

    def measure(
        self, name: str, call: Callable[[], bytes | None], target: dict[str, float], rounds: int = BATCHES, times: int | None = None
    ) -> None:
        """`times`: requests in a round; by default as many as make its time worth reading. A request that changes something goes by ONCE."""
        if self._only not in name and times is None:
            return
        sizes = []

        def sized() -> None:
            sizes.append(len(call() or b""))

        if times is None:
            began = time.monotonic()
            batches = [self._batch(sized, 1)]
            took = time.monotonic() - began
            times = max(1, min(50, int(BATCH_S / took)))
            rounds = rounds if took < SLOW_S else 0
        else:
            batches = []
        batches = [self._batch(sized, times) for _ in range(rounds)] or batches
        self.add(name, batches, sizes[-1], target)

    def alternate(self, calls: dict[str, tuple[Callable[[], bytes], dict[str, float]]]) -> None:
        """Requests of which one makes the next one possible, one after another."""
        batches: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
        sizes: dict[str, int] = {}
        for name, (call, _) in list(calls.items()) * BATCHES:
            batches[name].append(self._batch(lambda: sizes.update({name: len(call())}), 1))  # noqa: B023 - called at once
        for name, (_, target) in calls.items():
            self.add(name, batches[name], sizes[name], target)

    def add(self, name: str, batches: list[dict[str, float]], size: int, target: dict[str, float]) -> None:
        middle = {what: statistics.median(batch[what] for batch in batches) for what in batches[0]}
        cpu_ms = 1000 * max(0.0, middle["cpu"])
        self._http_ms = self._http_ms or cpu_ms
        self.figures.append(Figure(name, middle["queries"], middle["writes"], cpu_ms, cpu_ms - self._http_ms, size, target))
        print(line(self.figures[-1]), flush=True)


def line(figure: Figure) -> str:
    missed = figure.missed()
    verdict = "" if not figure.target else f"MISSED: {', '.join(missed)}" if missed else "ok"
    return f"{figure.name:52} {figure.queries:8.1f} {figure.writes:7.1f} {figure.cpu_ms:10.2f} {figure.beyond_ms:9.2f} {figure.bytes:10} {verdict}"


def measure(server: Server, database: Database, seeded: Seeded, options: Any) -> list[Figure]:
    bench = Bench(server, options.only)
    print(f"{'request':52} {'queries':>8} {'writes':>7} {'CPU ms':>10} {'beyond':>9} {'bytes':>10}")
    bench.measure("GET /v1/health", lambda: server.call("GET", "/health"), {}, rounds=25, times=20)
    free = busy_seed.meant(seeded, options.rounds, options.blocks)
    assert free, "every agent has a visit that is meant for it: take more agents"
    claims(bench, database, seeded, options, free)
    reads(bench, seeded)
    changes(bench, seeded, free)
    sweeps(bench, database)
    return bench.figures


def claims(bench: Bench, database: Database, seeded: Seeded, options: Any, free: list[int]) -> None:
    """What agents ask for again and again: all of it with the whole history in the database."""
    call, keys = bench.server.call, seeded.agent_keys
    cycle, place = divmod(options.rounds, options.blocks)
    owner, idle = keys[(place + cycle) % options.agents], keys[free[0]]

    def claim(key: str) -> bytes:
        return call("POST", "/assignments/claim?wait=0", CLAIM, key)

    claim(idle)  # the first one declares the agent's limits
    bench.measure("claim, idle, another's visit is pending", lambda: claim(idle), IDLE)
    held: dict[str, Any] = {}

    def lease() -> bytes:
        answer = claim(owner)
        held.update(json.loads(answer))
        return answer

    def give_back() -> bytes:
        with database.transaction() as session:  # else it would be passed over for the visit after the second time
            session.execute(update(Assignment).where(Assignment.id == held["assignment_id"]).values(failed={}))
        given_back = {"attempt": held["attempt"], "reason": "stopping"}
        return call("POST", f"/assignments/{held['assignment_id']}/return", given_back, owner)

    bench.alternate({"claim that gets the lease": (lease, LEASE), "POST …/return": (give_back, ROUTE)})
    lease()
    at = f"/assignments/{held['assignment_id']}"
    progress = {"attempt": held["attempt"], "progress": {"phase": "training", "step": 7, "steps": 100, "loss": 1.9}}
    bench.measure("claim, idle, nothing is pending", lambda: claim(idle), IDLE)
    bench.measure("POST …/renew", lambda: call("POST", f"{at}/renew", progress, owner), ROUTE)
    bench.measure("GET /v1/assignments/{assignment_id}", lambda: call("GET", at, key=owner), ROUTE)
    bench.measure("GET …/shards/{digest}, 64 kB", lambda: call("GET", f"{at}/shards/{seeded.real}", key=owner), ROUTE)
    part, digest = b"x" * 1000, digest_of(b"never whole")
    offset = iter(range(0, 1 << 30, len(part)))
    bench.measure("GET …/upload/{digest}", lambda: call("GET", f"{at}/upload/{digest}", key=owner), ROUTE)
    bench.measure("PUT …/upload/{digest}, 1 kB", lambda: call("PUT", f"{at}/upload/{digest}?offset={next(offset)}", part, owner), ROUTE)

    bench.measure("POST /v1/runs/{run}/start, a wave", lambda: call("POST", f"/runs/{WAVE}/start"), ROUTE, **ONCE)
    claim(idle)
    bench.measure("claim, idle, a wave is pending", lambda: claim(idle), IDLE)
    sweep(bench, "sweep, a wave is pending", SWEEP)
    bench.measure("POST /v1/runs/{run}/cancel, a wave", lambda: call("POST", f"/runs/{WAVE}/cancel"), ROUTE, **ONCE)
    bench.measure("claim, idle, a cancelled run has work pending", lambda: claim(idle), IDLE)

    bench.measure("POST /v1/runs/{run}/start", lambda: call("POST", f"/runs/{ABSENT}/start", {"anyway": True}), ROUTE, **ONCE)
    time.sleep(1.1)  # now its visit is overdue: `reassign_after_s` is 1
    claim(idle)
    bench.measure("claim, idle, an absent agent is awaited", lambda: claim(idle), IDLE)
    time.sleep(3)  # the patience with which the sweeper looks after a run for which nobody comes
    sweep(bench, "sweep, an absent agent is awaited", SWEEP)
    call("POST", f"/runs/{ABSENT}/cancel")

    unseen = free[1 : 1 + BATCHES]
    with database.transaction() as session:
        these = Agent.id.in_([agent_id(number) for number in unseen])
        session.execute(update(Agent).where(these).values(last_seen_at=utcnow() - timedelta(seconds=45)))
    signs = iter(unseen)
    bench.measure("claim, idle, a sign of life is due", lambda: claim(keys[next(signs)]), {}, rounds=len(unseen), times=1)


def reads(bench: Bench, seeded: Seeded) -> None:
    server, run = bench.server, f"/runs/{BIG}"
    server.log_in()
    near = f"/admin/runs/{identifier('run', BIG)}"
    pages = [
        "/admin", "/admin/live", "/admin/runs", near, f"{near}?part=live", f"{near}/blocks/norm", "/admin/agents", "/admin/agents/agent-00000",
        "/admin/models", "/admin/events", f"/admin/events?run={BIG}&level=error", "/admin/audit",
        f"/admin/compare?run={identifier('run', BIG)}&run={identifier('run', f'{OLD}-0')}",
    ]  # fmt: skip
    for page in pages:
        name = page.replace(identifier("run", BIG), "{run}").partition("&run=")[0]
        bench.measure(f"GET {name}", lambda page=page: server.page(page), PAGE)  # type: ignore[misc]
    paths = [
        "/status", "/runs", run, f"{run}/readiness", f"{run}/rounds", f"{run}/assignments", f"{run}/traffic",
        f"{run}/blocks", f"{run}/blocks/norm/versions", f"{run}/timeline", f"{run}/series", f"{run}/exports", f"{run}/explanation",
        "/events", f"/events?run={BIG}", "/events?code=round_closed", "/agents/agent-00000", "/agents/agent-00000/visits", "/audit?newest_first=true",
        f"{run}/exports/{seeded.export_id}", f"{run}/exports/{seeded.export_id}/config.json", "/agents", "/exposure", "/exposure?limit=1000",
        "/exposure?agent=agent-00000", "/models", "/models/llama-70b",
    ]  # fmt: skip
    for path in paths:
        bench.measure(f"GET {API}{path.replace(seeded.export_id, '{export_id}')}", lambda path=path: server.call("GET", path), ROUTE)  # type: ignore[misc]
    bench.measure("GET /metrics", server.scrape, ROUTE)
    agent = seeded.agent_keys[0]
    bench.measure("GET /v1/runs/{run}/files/{name}", lambda: server.call("GET", f"{run}/files/config.json", key=agent), ROUTE)
    bench.measure("GET /v1/agents/me", lambda: server.call("GET", "/agents/me", key=agent), ROUTE)


def changes(bench: Bench, seeded: Seeded, free: list[int]) -> None:
    """The rest of what operators and agents do."""
    call, agent = bench.server.call, seeded.agent_keys[0]
    run_id = identifier("run", BIG)
    ready = {"runs": [{"run_id": run_id, "fits": True, "rows": 1000, "exact": True}]}
    bench.measure("PUT /v1/agents/me/readiness", lambda: call("PUT", "/agents/me/readiness", ready, agent), ROUTE)
    bench.measure("POST /v1/enrolment-tokens", lambda: call("POST", "/enrolment-tokens", {}), ROUTE)
    tokens = [json.loads(call("POST", "/enrolment-tokens", {}))["token"] for _ in range(BATCHES)]
    enrolments = iter([{"token": token, "name": f"new-{number}", "device": {}, "version": "1"} for number, token in enumerate(tokens)])
    bench.measure("POST /v1/agents", lambda: call("POST", "/agents", next(enrolments)), ROUTE, rounds=len(tokens), times=1)
    bench.measure("POST /v1/agents/{name}/revoke", lambda: call("POST", "/agents/new-0/revoke"), ROUTE, **ONCE)
    bench.measure("POST /v1/agents/me/key", lambda: call("POST", "/agents/me/key", key=seeded.agent_keys[free[-1]]), ROUTE, **ONCE)
    bench.measure("POST /v1/models", lambda: call("POST", "/models", {"name": "other", "source": "/nowhere"}), ROUTE, **ONCE)
    spec = json.loads(call("GET", f"/runs/{DRAFT}"))["spec"]
    bench.measure("POST /v1/plan", lambda: call("POST", "/plan", spec), {})
    bench.measure("POST /v1/runs", lambda: call("POST", "/runs", spec | {"name": "new"}), ROUTE, **ONCE)
    for verb in ("pause", "resume"):
        bench.measure(f"POST /v1/runs/{{run}}/{verb}", lambda verb=verb: call("POST", f"/runs/{BIG}/{verb}"), ROUTE, **ONCE)  # type: ignore[misc]
    bench.measure("POST /v1/runs/{run}/exports", lambda: call("POST", f"/runs/{BIG}/exports"), ROUTE)
    held_out = b'{"text": "held out again"}\n'
    bench.measure("PUT /v1/held-out/{digest}", lambda: call("PUT", f"/held-out/{digest_of(held_out)}?name=rows.jsonl", held_out), ROUTE)


def sweep(bench: Bench, name: str, target: dict[str, float], **how: int) -> None:
    bench.measure(name, lambda: None if bench.server.counters("sweep") else b"", target, **how)


def sweeps(bench: Bench, database: Database) -> None:
    sweep(bench, "sweep", SWEEP)
    bench.measure("tidy", lambda: None if bench.server.counters("tidy") else b"", {}, **ONCE)
    with database.transaction() as session:
        session.execute(update(Agent).values(last_seen_at=utcnow() - timedelta(hours=1)))
    sweep(bench, "sweep that finds all agents silent", {}, **ONCE)


@contextlib.contextmanager
def server_of(home: Path, database_url: str | None, seeded: Seeded) -> Iterator[Server]:
    server = Server(home, database_url, seeded)
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10_000, help="closed ones of the long run (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=83, help="of its model (default: %(default)s)")
    parser.add_argument("--database-url", help="an empty PostgreSQL database (default: an SQLite file in a temporary directory)")
    parser.add_argument("--only", default="", metavar="TEXT", help="measure only the requests with this text in their name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        home = Path(name)
        database = Database(options.database_url or f"sqlite:///{home / 'coordinator.db'}")
        began = time.monotonic()
        migrate.upgrade(database.engine)
        seeded = Seed(database, home / "blobs", options.agents, options.rounds, options.blocks).fill()
        load = os.getloadavg()[0]
        print(
            f"{options.agents} agents, {options.rounds} rounds of {options.blocks} blocks on {database.engine.dialect.name}, "
            f"filled in {time.monotonic() - began:.0f} s; load of the machine {load:.1f}"
        )
        with server_of(home, options.database_url, seeded) as server:
            figures = measure(server, database, seeded, options)
        database.close()
    missed = [figure.name for figure in figures if figure.missed()]
    print(f"\n{len(figures)} figures, {len(missed)} beyond their targets; load of the machine {os.getloadavg()[0]:.1f}")
    if options.json is not None:
        found = {
            f.name: {"queries": f.queries, "writes": f.writes, "cpu_ms": f.cpu_ms, "beyond_ms": f.beyond_ms, "bytes": f.bytes}
            for f in figures
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
