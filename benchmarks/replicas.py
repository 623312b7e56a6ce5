"""What several coordinators cost a run, and for how long it stands still when the one that judges is killed.

    python -m benchmarks.replicas [--json FILE] [--repeats N]

One coordinator and three, each `fedcoord serve` with its engines, on one PostgreSQL server, the three behind a TCP balancer; for each
three agents with the real client code, which move their blocks a little instead of training. Runs of eight rounds alternate between the
two. Measured is from the opening of each round to its lease, by the database, and summed over a run. Then, of three coordinators, the
one that judges a delta is killed (SIGKILL) and not started again: measured is from there to the next lease.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.report import arguments, finish, spread
from benchmarks.system import ENVIRONMENT
from fedcybgd import Client, Coordinator
from fedcybgd.agent.client import Client as AgentClient
from fedcybgd.agent.errors import AgentError
from fedcybgd.shared.contract.agents import DeviceInfo, EnrolRequest
from tests.faults.fleet import free_port
from tests.support.balancer import Balancer
from tests.support.light import LightAgent
from tests.support.models import tiny_llama
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for

AGENTS, ROUNDS, SEVERAL, WAIT_S = 3, 8, 3, 20.0
TARGETS = {"opened to leased, ratio": 1.2, "standstill, seconds": 15.0}
SUM = (
    "SELECT sum(extract(epoch FROM a.leased_at - r.opened_at)), count(*) FROM round r JOIN assignment a ON a.run_id = r.run_id "
    "AND a.round = r.number WHERE r.run_id = %s AND a.leased_at IS NOT NULL"
)
JUDGES = "SELECT job.id, replica.home FROM job JOIN replica ON replica.id = job.owner WHERE job.state = 'running' AND job.kind = 'admit'"
STILL = "SELECT state = 'running' FROM job WHERE id = %s"
NEXT = "SELECT min(leased_at) FROM assignment WHERE leased_at > %s"


class Coordinators:
    """Some on one database, with agents that work until it is left."""

    def __init__(self, folder: Path, url: str, number: int) -> None:
        self.database, ports = url, [free_port() for _ in range(number)]
        settings: dict[str, Any] = {"database_url": url, "shared": folder / "shared", "threads": 8}

        def start(at: int) -> Coordinator:
            return Coordinator.local(folder / f"coordinator-{at}", ports[at], environment=ENVIRONMENT, timeout_s=300, **settings)

        first = start(0)
        with ThreadPoolExecutor() as together:
            self.all = [first, *together.map(start, range(1, number))]
        self.balancer = Balancer(ports)
        self.client = Client(self.balancer.url, (folder / "shared" / "operator.key").read_text().strip())
        self.client.models.add(tiny_llama(folder / "model"), "tiny")
        self._leaving = threading.Event()
        self._agents = [threading.Thread(target=self._work, args=(folder / f"agent-{k}", f"agent-{k}"), daemon=True) for k in range(AGENTS)]
        for agent in self._agents:
            agent.start()
        wait_for(lambda: self.client.status().agents_by_state.get("active", 0) == AGENTS, 120)

    def enrol(self, name: str, _url: str) -> AgentClient:
        token = self.client.agents.token(expires_in_s=3600).token
        answer = AgentClient(self.balancer.url).enrol(EnrolRequest(token=token, name=name, device=DeviceInfo(), version="benchmark"))
        agent = AgentClient(self.balancer.url, answer.key)
        agent.me()
        return agent

    def _work(self, home: Path, name: str) -> None:
        agent: Any = LightAgent(self, home, name)  # type: ignore[arg-type]
        while not self._leaving.is_set():
            try:
                if (assignment := agent.claim("*", WAIT_S)) is not None:
                    agent.visit(assignment)
            except AgentError:
                time.sleep(0.5)

    def begin(self, name: str) -> str:
        spec = {
            "name": name, "model": "tiny", "task": {"kind": "causal-lm", "max_length": 16},
            "schedule": {"cycles": ROUNDS // 2, "blocks": ["layers"], "always": [], "agents": "rotating"},
            "compression": {"policy": "none"}, "delta": {"codec": "float32"}, "admission": {"norm_band": None}, "lease_s": 60,
        }  # fmt: skip
        run = self.client.connection.post("/runs", spec)["id"]  # type: ignore[index,call-overload]
        wait_for(lambda: self.client.runs.get(run).prepared, 120)
        self.client.runs.start(run)
        return str(run)

    def sum_of(self, run: str) -> float:
        """Seconds from opened to leased, of all rounds of a run."""
        wait_for(lambda: self.client.runs.get(run).state == "completed", 300, 0.2)
        with psycopg.connect(self.database) as connection:
            seconds, rounds = connection.execute(SUM, [run]).fetchone() or (0, 0)
        assert rounds == ROUNDS, f"{rounds} leases in {ROUNDS} rounds"
        return float(seconds)

    def kill_who_judges(self) -> float:
        """When; the job under which it died is still its own."""
        homes = {(one.home / "home.id").read_text().strip(): one for one in self.all if one.running}
        with psycopg.connect(self.database, autocommit=True) as connection:
            while True:
                found = connection.execute(JUDGES).fetchone()
                if found is None:
                    continue
                killed = time.time()
                homes[found[1]].kill()
                if connection.execute(STILL, [found[0]]).fetchone() == (True,):
                    return killed
                homes.pop(found[1]).start()  # it was done already
                raise TimeoutError("it was faster than the signal")

    def next_lease(self, after: float) -> float:
        with psycopg.connect(self.database, autocommit=True) as connection:
            moment = connection.execute("SELECT to_timestamp(%s)", [after]).fetchone()
            found = wait_for(lambda: (connection.execute(NEXT, moment).fetchone() or [None])[0], 120, 0.02)
        return float(found.timestamp())

    def close(self) -> None:
        self._leaving.set()
        for one in self.all:
            if one.running:
                one.stop()
        self.balancer.close()


@contextmanager
def coordinators(folder: Path, url: str, number: int) -> Iterator[Coordinators]:
    made = Coordinators(folder, url, number)
    try:
        yield made
    finally:
        made.close()


def standstill(several: Coordinators, tries: int = 5) -> float:
    """Seconds for which a run does nothing once its judge is killed."""
    for number in range(tries):
        run = several.begin(f"killed-{number}")
        wait_for(lambda run=run: several.client.runs.get(run).rounds_done >= 1, 120, 0.01)
        try:
            killed = several.kill_who_judges()
        except TimeoutError as late:
            print(late, flush=True)
            wait_for(lambda run=run: several.client.runs.get(run).state == "completed", 300, 0.2)
            continue
        seconds = several.next_lease(killed) - killed
        wait_for(lambda run=run: several.client.runs.get(run).state == "completed", 300, 0.2)
        assert [one.running for one in several.all].count(False) == 1
        return seconds
    raise SystemExit("nobody was killed while it judged")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    server = PostgresServer()
    with tempfile.TemporaryDirectory(prefix="fedcybgd-replicas-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        stack.callback(server.stop)
        one = stack.enter_context(coordinators(Path(folder) / "one", server.new_database(), 1))
        several = stack.enter_context(coordinators(Path(folder) / "several", server.new_database(), SEVERAL))
        sums: dict[str, list[float]] = {"one": [], "several": []}
        for number in range(given.repeats + 1):
            for name, system in (("one", one), ("several", several)):
                seconds = system.sum_of(system.begin(f"run-{number}"))
                print(f"{name}: {seconds:.2f} s in {ROUNDS} rounds{'' if number else ', not counted: it is the first'}", flush=True)
                if number:
                    sums[name].append(seconds)
        print(f"one {spread(sums['one'], 's', 2)}, {SEVERAL} {spread(sums['several'], 's', 2)}", flush=True)
        figures = {
            "one, seconds": statistics.median(sums["one"]),
            "several, seconds": statistics.median(sums["several"]),
            "opened to leased, ratio": statistics.median(sums["several"]) / statistics.median(sums["one"]),
            "standstill, seconds": standstill(several),
        }
    finish(figures, TARGETS, given.json)


if __name__ == "__main__":
    main()
