"""Part of `benchmarks.simulation`: real runs, and what the model says of them.

A real coordinator with its engines on this machine, and agents that wait instead of training (`benchmarks.crowd`). Service times are read
from the database after two runs, of one block and of four blocks a round; then other runs are foretold from these and measured: wider rounds,
more agents, agents that are gone.
"""

import statistics
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from sqlalchemy import select

from benchmarks.crowd import CrowdRequest
from benchmarks.idle_agents import crowd, enrol, wait_until_waiting
from benchmarks.simulated import Coordinator, Costs, Fleet, Simulation, Visit, rounds_of
from benchmarks.system import System
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Assignment, Round
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape
from tests.support.models import tiny_bert

INPUTS = Path(__file__).with_name("simulation.toml")
LAYERS, TRAIN_S, LEASE_S, REASSIGN_S = 8, 2.0, 4, 6
TASK = {"kind": "text-classification", "labels": 2, "max_length": 16}


@dataclass(frozen=True)
class Case:
    agents: int
    wave: int
    cycles: int
    dying: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        gone = f", {len(self.dying)} gone" if self.dying else ""
        return f"{self.agents} agents, waves of {self.wave}{gone}"


CALIBRATED = (Case(10, 1, 2), Case(10, 4, 5))
FORETOLD = (Case(10, 2, 3), Case(10, 4, 4, (2,)))
FULL_WAVES_BY = (10, 200, 1000, 2000, 5000)
"""So many agents train waves of eight, each in a run of its own"""


def spec_of(case: Case) -> dict[str, Any]:
    return {
        "name": f"a{case.agents}-w{case.wave}-{len(case.dying)}", "model": "tiny", "task": TASK, "train": {"steps": 1}, "delta": {"codec": "float32"},
        "schedule": {"cycles": case.cycles, "blocks": ["layers"], "always": ["pooler", "head"], "wave": case.wave, "damping": 0.1, "reassign_after_s": REASSIGN_S},
        "lease_s": LEASE_S, "admission": {"norm_band": None},
    }  # fmt: skip


@dataclass(frozen=True)
class Real:
    seconds: float
    leased: float
    """medians: from the opening of a round to a lease of it"""
    carried: float
    """from there to the delta, without the training"""
    judged: float
    applied: float
    """from the last verdict of a round to its end"""
    core: float
    """of a core, that the event loop of the web process got when it wanted one"""


def measured(database: Database, run_id: str, core: float) -> Real:
    with database.reading() as session:
        rounds = session.execute(
            select(Round.number, Round.opened_at, Round.closed_at).where(Round.run_id == run_id).order_by(Round.number)
        ).all()
        columns = (Assignment.round, Assignment.leased_at, Assignment.submitted_at, Assignment.judged_at, Assignment.attempt)
        visits = session.execute(select(*columns).where(Assignment.run_id == run_id)).all()
    opened = {r.number: r.opened_at for r in rounds}
    last = {n: max(v.judged_at for v in visits if v.round == n) for n in opened}
    first = [v for v in visits if v.attempt == 1]

    def median(pairs: list[tuple[datetime, datetime]]) -> float:
        return statistics.median((after - before).total_seconds() for before, after in pairs)

    return Real(
        (rounds[-1].closed_at - rounds[0].opened_at).total_seconds(),
        median([(opened[v.round], v.leased_at) for v in first]),
        median([(v.leased_at, v.submitted_at) for v in first]) - TRAIN_S,
        median([(v.submitted_at, v.judged_at) for v in first]),
        median([(last[r.number], r.closed_at) for r in rounds]),
        core,
    )


def calibrated(one: Real, four: Real) -> Costs:
    """From rounds of one block and of four: what is per delta, and what per round. Leases and verdicts come one after another.

    In seconds of a core of one's own: what the rest of the machine takes is another in each run.
    """
    more = CALIBRATED[1].wave - 1
    per_block = max(0.0, four.core * four.applied - one.core * one.applied) / more
    lease = max(0.001, (four.core * four.leased - one.core * one.leased) / (more / 2))  # a median has half of the others before it
    crowd = Costs(**tomllib.loads(INPUTS.read_text())["costs"])
    return Costs(
        poll_s=crowd.poll_s, let_go_a_s=crowd.let_go_a_s, renew_every_s=1e9, renew_s=0, lease_s=lease, request_s=0,
        between_s=one.core * (max(0.0, one.leased - lease / one.core) + max(0.0, one.carried)), served_s_per_gb=0, received_s_per_gb=0,
        judge_s=one.core * one.judged, judge_s_per_million=0, apply_s=max(0.0, one.core * one.applied - per_block), apply_s_per_million=0,
        apply_s_per_block=per_block,
    )  # fmt: skip


def foretold(case: Case, core: float, costs: Costs, shape: ModelShape, blocks: list[BlockShape], visited: list[str]) -> float:
    fleet = Fleet(agents=case.agents, line_bytes_per_s=1e12, noticed_s=LEASE_S, dying=frozenset(case.dying))
    rounds = rounds_of(RunFile.model_validate(spec_of(case)), shape, blocks, visited, case.agents, TRAIN_S)
    moving = ([Visit(v.agent, 0, 0, 0, 0, v.train_s) for v in visits] for visits in rounds)  # of a few kB each
    return Simulation(costs, Coordinator(line_bytes_per_s=1e12, core=core), fleet, REASSIGN_S, 0).run(moving).seconds


def scheduled(pid: int) -> tuple[int, int]:
    """Nanoseconds for which the first thread of a process had a core, and for which it wanted one and had none."""
    had, wanted, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(had), int(wanted)


@contextmanager
def system() -> Iterator[tuple[System, Database, Path]]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, System(Path(name) / "system", {}) as one:
        one.add_model("tiny", tiny_bert(Path(name) / "tiny", LAYERS))
        database = Database(f"sqlite:///{one.home / 'coordinator.db'}")
        yield one, database, Path(name)
        database.close()


def deltas(database: Database, run_id: str, folder: Path) -> dict[str, str]:
    """Block → file with a small random delta of it and of all that is trained along with it."""
    with database.reading() as session:
        tensors = {block.name: block.tensors for block in queries.blocks_of(session, run_id, tensors=True)}
    made = {}
    for name in tensors:
        path = folder / f"{name}.safetensors"
        both = tensors[name] + tensors["pooler"] + tensors["head"]
        path.write_bytes(save({t.name: 1e-4 * torch.randn(t.shape) for t in both}))
        made[name] = str(path)
    return made


def once(case: Case) -> tuple[Real, ModelShape, list[BlockShape], list[str]]:
    """One real run, by a coordinator of its own."""
    with system() as (one, database, folder):
        keys = enrol(database, case.agents)
        run_id = one.create_run(spec_of(case))
        files = deltas(database, run_id, folder)
        request = CrowdRequest(
            url=one.url, keys=keys, deltas=files, arrivals=str(folder / "arrivals"), train_s=TRAIN_S, dying=list(case.dying)
        )
        with crowd(folder, request):
            wait_until_waiting(one, case.agents)
            before = scheduled(one.web.pid)
            one.start(run_id)
            one.wait_for(run_id)
            had, wanted = (now - then for now, then in zip(scheduled(one.web.pid), before, strict=True))
        with database.reading() as session:
            rows = queries.blocks_of(session, run_id, tensors=True)
            blocks = [BlockShape(b.name, b.kind, {t.name: tuple(t.shape) for t in b.tensors}) for b in rows]
        config = one.client.models.get("tiny").config
        return (
            measured(database, run_id, had / (had + wanted)),
            ModelShape.of(config),
            blocks,
            [b.name for b in blocks if b.kind == "layer"],
        )


def check(full_waves_by: Sequence[int] = FULL_WAVES_BY) -> dict[str, float]:
    """Both sides of every run, and their ratios."""
    found = [once(case) for case in CALIBRATED]
    costs = calibrated(found[0][0], found[1][0])
    print(f"service times, from two real runs: {costs.model_dump_json(exclude_defaults=True)}")
    print(*(real for real, *_ in found), sep="\n")
    print(f"{'':34}{'of a core':>10}{'measured':>10}{'foretold':>10}{'ratio':>7}")
    figures = {}
    others = (*FORETOLD, *(Case(agents, 8, 5) for agents in full_waves_by))
    for case, known in [*zip(CALIBRATED, found, strict=True), *((case, None) for case in others)]:
        real, shape, blocks, visited = known or once(case)
        said = foretold(case, real.core, costs, shape, blocks, visited)
        mark = " (it gave the service times)" if known else ""
        print(f"{case.name:34}{real.core:10.2f}{real.seconds:9.1f}s{said:9.1f}s{said / real.seconds:7.2f}{mark}", flush=True)
        figures[f"ratio_{case.agents}_agents_waves_of_{case.wave}_{len(case.dying)}_gone"] = said / real.seconds
    return figures
