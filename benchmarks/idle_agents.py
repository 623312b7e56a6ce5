"""What a thousand idle agents cost the web process, and how soon a new assignment reaches its agent among them.

    python -m benchmarks.idle_agents [--json FILE] [--agents N] [--seconds S]

The agents are connections of one other process, each with a key of its own, a long poll of 25 seconds and whatever the answer
brings. While they wait, the processor time and the memory of the web process are read. Then two runs are started: in one each
visit is meant for one agent, in the other it is for whoever comes first. The time runs from the transaction that opens an
assignment (its own clock, before the commit) to the moment when the agent has its answer.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from sqlalchemy import select

from benchmarks import banking77
from benchmarks.crowd import CrowdRequest
from benchmarks.report import arguments, finish, percentile, spread
from benchmarks.system import ENVIRONMENT, System
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.services.records import keys
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo

TARGETS = {"cpu_percent": 20, "claim_ms_p99": 100}
TASK = {"kind": "text-classification", "labels": 2}
VISITS = 120
"""Of each of the two runs."""
SCHEDULES = {
    "meant for one agent": {"agents": "rotating", "cycles": VISITS // 2, "blocks": ["layers"], "always": ["pooler", "head"]},
    "for whoever comes first": {"agents": "first_come", "cycles": VISITS // 2, "blocks": ["layers"], "always": ["pooler", "head"]},
}


def enrol(database: Database, count: int) -> list[str]:
    """The private keys of `count` new agents, made in one transaction."""
    given = [new_private_key() for _ in range(count)]
    with database.transaction() as session:
        session.add_all(
            Agent(id=keys.new_id("agt"), name=f"agent-{i:05}", key_hash=signer.key_id, public_key=signer.public_key, state=AgentState.ENROLLED,
                  device=DeviceInfo(), limits=DeclaredLimits(), version="", enrolled_at=utcnow())
            for i, signer in enumerate(map(Signer, given))
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
def crowd(folder: Path, request: CrowdRequest) -> Iterator[Path]:
    """The agents, as a process; gives the file in which it notes each assignment that arrives."""
    (folder / "crowd.json").write_text(request.model_dump_json())
    command = [sys.executable, "-m", "benchmarks.crowd", str(folder / "crowd.json")]
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT})
    try:
        yield Path(request.arrivals)
        assert process.poll() is None, "the agents' process ended"
    finally:
        process.kill()
        process.wait()


def wait_until_waiting(system: System, count: int) -> None:
    """Return when (nearly) all agents are in their long poll; some are always between two of them."""
    system.client.wait(lambda: system.client.status().waiting_claims, lambda n: n >= 0.98 * count, every_s=1, timeout_s=300)


def idle(system: System, seconds: float) -> tuple[float, float]:
    """Percent of one core that the web process takes, and its megabytes."""
    before, began = system.cpu_seconds()["web"], time.monotonic()
    shares = []
    for _ in range(6):
        at, cpu = time.monotonic(), system.cpu_seconds()["web"]
        time.sleep(seconds / 6)
        shares.append(100 * (system.cpu_seconds()["web"] - cpu) / (time.monotonic() - at))
    percent = 100 * (system.cpu_seconds()["web"] - before) / (time.monotonic() - began)
    memory = system.web.memory_info().rss / 1e6
    print(f"web process: {percent:.1f} % of one core over {seconds:.0f} s (parts of it: {spread(shares, '%')}), {memory:.0f} MB")
    return percent, memory


def arrivals_ms(database: Database, run_id: str, noted: Path) -> list[float]:
    """From opening to arrival, of every assignment of a run."""
    arrived = {a["assignment_id"]: a["at"] for a in map(json.loads, noted.read_text().splitlines())}
    with database.reading() as session:
        rows = session.execute(select(Assignment.id, Assignment.waiting_since, Assignment.attempt).where(Assignment.run_id == run_id)).all()
    assert all(row.attempt == 1 for row in rows)
    return [1000 * (arrived[row.id] - row.waiting_since.timestamp()) for row in rows]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long they are watched idle (default: %(default)s)")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file, here and in the coordinator
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        model = banking77.tiny(folder / "tiny")
        with System(folder / "system", {}) as system:
            system.add_model("tiny", model)
            database = Database(f"sqlite:///{system.home / 'coordinator.db'}")
            given = enrol(database, options.agents)
            runs = {label: prepare(system, schedule) for label, schedule in SCHEDULES.items()}
            files = deltas(database, next(iter(runs.values())), folder)
            request = CrowdRequest(url=system.url, keys=given, deltas=files, arrivals=str(folder / "arrivals.jsonl"))
            with crowd(folder, request) as noted:
                wait_until_waiting(system, options.agents)
                percent, _ = idle(system, options.seconds)
                times = []
                for label, run_id in runs.items():
                    system.start(run_id)
                    system.wait_for(run_id)
                    found = arrivals_ms(database, run_id, noted)
                    times += found
                    print(
                        f"{len(found)} assignments {label}: {spread(found, 'ms')} (least / median / greatest), p99 {percentile(found, 99):.1f} ms"
                    )
            database.close()
    print(f"all {len(times)} assignments: median {statistics.median(times):.1f} ms, p99 {percentile(times, 99):.1f} ms")
    finish({"agents": options.agents, "cpu_percent": percent, "claim_ms_p99": percentile(times, 99)}, TARGETS, options.json)


def prepare(system: System, schedule: dict[str, Any]) -> str:
    return system.create_run({
        "name": f"{schedule['agents']}-{secrets.token_hex(2)}", "model": "tiny", "task": TASK, "schedule": schedule, "train": {"steps": 1},
        "delta": {"codec": "float32"},
    })  # fmt: skip


if __name__ == "__main__":
    main()
