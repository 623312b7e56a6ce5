"""Part of `benchmarks.simulation`: a coordinator, its line and its agents as a discrete-event model, in seconds that pass in a moment.

Who trains what when is asked of the project's own methods and planner (`rounds_of`); what a thing takes is an input. A round is over when
all of its visits are judged and applied. Not in it: measurements (they stand behind no round), agents that refuse, disks that are full.
"""

import heapq
import math
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy
from pydantic import BaseModel

from fedcybgd.coordinator.domain.long_poll import wait_s
from fedcybgd.coordinator.domain.methods.registry import method_of, rounds_in
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.forecast import _common, _frozen
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape
from fedcybgd.coordinator.planning.traffic import packed_bytes, simulate

Doing = Generator[simpy.Event, Any, Any]


class Costs(BaseModel, extra="forbid"):
    """What the coordinator takes for one of each: seconds of its processor, unless said."""

    poll_s: float
    """a claim of an agent that waits; how long it waits in one is told by the coordinator"""
    let_go_a_s: float = 0
    """claims of a process that are let go each second when a run begins, and come again, until all were"""
    renew_every_s: float
    renew_s: float
    lease_s: float
    request_s: float
    """a blob that is asked for, an upload, a delta that is submitted"""
    served_s_per_gb: float
    received_s_per_gb: float
    between_s: float
    """from the news of a round to its agent, beside the rest; others may do the like meanwhile"""
    judge_s: float
    """of a lane, for a delta"""
    judge_s_per_million: float
    """and for each million of its parameters"""
    apply_s: float
    """of a lane, for a round"""
    apply_s_per_million: float
    apply_s_per_block: float = 0


class Coordinator(BaseModel, extra="forbid"):
    processes: int = 1
    """web processes, each with a core of its own"""
    lanes: int = 1
    """engines of the quick lane, all together"""
    core: float = 1
    """of a core that each process gets, web or engine, when it wants one; others use the rest"""
    line_bytes_per_s: float
    stored_elsewhere: bool = False
    """shards and deltas do not pass the web processes"""


class Fleet(BaseModel, extra="forbid"):
    agents: int
    line_bytes_per_s: float
    unpack_s_per_gb: float = 0
    absent: float = 0
    """share of the agents that never come"""
    fails: float = 0
    """share of the visits whose agent is gone in the middle of training, for good"""
    dying: frozenset[int] = frozenset()
    """agents that are gone at their first visit"""
    noticed_s: float
    """from there to the end of the lease"""
    silent_after_s: float = 90
    """after which no visit is meant for an agent any more"""


@dataclass(frozen=True)
class Visit:
    agent: int
    down: float
    up: float
    parameters: float
    blobs: int
    train_s: float


class Link:
    """A line that all transfers share evenly; none is faster than `each`."""

    def __init__(self, env: simpy.Environment, whole: float, each: float) -> None:
        self._env, self._whole, self._each = env, whole, each
        self._served, self._at, self._turn = 0.0, 0.0, 0  # bytes that each transfer had so far that was there all the time
        self._moving: list[tuple[float, int, simpy.Event]] = []
        self.busy = 0.0
        """bytes in all"""

    def move(self, size: float) -> simpy.Event:
        """Happens when so many bytes have crossed."""
        self._advance()
        event = self._env.event()
        self._turn += 1
        self.busy += size
        heapq.heappush(self._moving, (self._served + size, self._turn, event))
        self._again()
        return event

    def _rate(self) -> float:
        return min(self._each, self._whole / max(1, len(self._moving)))

    def _advance(self) -> None:
        self._served += (self._env.now - self._at) * self._rate()
        self._at = self._env.now

    def _again(self) -> None:
        self._turn += 1
        if self._moving:
            left = max(0.0, self._moving[0][0] - self._served)
            self._env.process(self._wake(self._turn, left / self._rate()))

    def _wake(self, turn: int, after: float) -> Doing:
        yield self._env.timeout(after)
        if turn != self._turn:
            return
        self._advance()
        due = self._moving[0][0]
        while self._moving and self._moving[0][0] <= due:
            heapq.heappop(self._moving)[2].succeed()
        self._again()


@dataclass
class Found:
    seconds: float = 0.0
    rounds: list[float] = field(default_factory=list)
    """seconds of each"""
    idle_share: float = 0.0
    """of the web processes' processors, that agents take who only wait and renew"""
    web_share: float = 0.0
    """with all requests"""
    lane_share: float = 0.0
    line_share: float = 0.0
    stood_in: int = 0
    saturated: bool = False


class Simulation:
    def __init__(self, costs: Costs, coordinator: Coordinator, fleet: Fleet, reassign_after_s: float, whole: float, seed: int = 0) -> None:
        """`whole`: bytes that a stand-in fetches, who holds nothing."""
        self.costs, self.coordinator, self.fleet = costs, coordinator, fleet
        self._reassign_after_s, self._whole, self._random = reassign_after_s, whole, random.Random(seed)
        self.env = simpy.Environment()
        self.found = Found()
        each = fleet.agents / coordinator.processes
        self.found.idle_share = costs.poll_s * each / wait_s(int(each), fleet.silent_after_s)
        self.found.saturated = self.found.idle_share >= 0.98 * coordinator.core
        self._steady = max(0.02, coordinator.core - self.found.idle_share)
        """of a core, for visits: what those leave who only wait"""
        self._all_let_go_at = each / costs.let_go_a_s if costs.let_go_a_s else 0.0
        self._web = simpy.Resource(self.env, coordinator.processes)
        self._lane = simpy.Resource(self.env, coordinator.lanes)
        self.busy = {"web": 0.0, "lane": 0.0}
        self._down, self._up = (self._link(per_gb) for per_gb in (costs.served_s_per_gb, costs.received_s_per_gb))
        absent = (n for n in range(fleet.agents) if fleet.absent and self._random.random() < fleet.absent)
        self._gone: dict[int, float] = dict.fromkeys(absent, -math.inf)
        """since when"""
        self._dying = set(fleet.dying)

    def _left(self) -> float:
        """Of a core, for visits, now: less until all wait again that were let go when the run began."""
        come_again = self.costs.let_go_a_s * self.costs.poll_s if self.env.now < self._all_let_go_at else 0.0
        return max(0.02, self._steady - come_again)

    def _link(self, per_gb: float) -> Link:
        """Bytes that pass the web processes are no faster than those can hand them on."""
        passed = math.inf if self.coordinator.stored_elsewhere or not per_gb else self.coordinator.processes * self._steady * 1e9 / per_gb
        return Link(self.env, min(self.coordinator.line_bytes_per_s, passed), self.fleet.line_bytes_per_s)

    def run(self, rounds: Iterable[Sequence[Visit]]) -> Found:
        self.env.run(self.env.process(self._all(rounds)))
        found, now = self.found, self.env.now
        found.seconds = now
        passed = 0.0 if self.coordinator.stored_elsewhere else 1e-9
        moved = passed * (self._down.busy * self.costs.served_s_per_gb + self._up.busy * self.costs.received_s_per_gb)
        found.web_share = found.idle_share + (self.busy["web"] + moved) / self.coordinator.processes / now
        found.lane_share = self.busy["lane"] / self.coordinator.lanes / now
        found.line_share = max(self._down.busy, self._up.busy) / self.coordinator.line_bytes_per_s / now
        return found

    def _all(self, rounds: Iterable[Sequence[Visit]]) -> Doing:
        for visits in rounds:
            began, costs = self.env.now, self.costs
            yield self.env.all_of([self.env.process(self._visit(visit)) for visit in visits])
            million = sum(visit.parameters for visit in visits) / 1e6
            yield from self._use(
                self._lane, "lane", costs.apply_s + costs.apply_s_per_block * len(visits) + costs.apply_s_per_million * million
            )
            self.found.rounds.append(self.env.now - began)

    def _use(self, resource: simpy.Resource, name: str, seconds: float) -> Doing:
        with resource.request() as turn:
            yield turn
            yield self.env.timeout(seconds / (self._left() if name == "web" else self.coordinator.core))
        self.busy[name] += seconds

    def _visit(self, visit: Visit) -> Doing:
        agent, down, costs = visit.agent, visit.down, self.costs
        opened = self.env.now
        while True:
            if agent in self._gone:
                if opened - self._gone[agent] < self.fleet.silent_after_s:
                    yield self.env.timeout(self._reassign_after_s)
                agent, down = self._stand_in(), self._whole
            yield self.env.timeout(costs.between_s / self._left())
            yield from self._use(self._web, "web", costs.lease_s)
            if down:
                yield from self._use(self._web, "web", visit.blobs * costs.request_s)
                yield self._down.move(down)
                yield self.env.timeout(down * self.fleet.unpack_s_per_gb / 1e9)
            if agent in self._dying or self._random.random() < self.fleet.fails:
                self._gone[agent] = self.env.now
                self._dying.discard(agent)
                yield self.env.timeout(self.fleet.noticed_s)
                continue
            yield self.env.timeout(visit.train_s)
            self.busy["web"] += visit.train_s / costs.renew_every_s * costs.renew_s
            yield self._up.move(visit.up)
            yield from self._use(self._web, "web", 2 * costs.request_s)
            yield from self._use(self._lane, "lane", costs.judge_s + costs.judge_s_per_million * visit.parameters / 1e6)
            return

    def _stand_in(self) -> int:
        self.found.stood_in += 1
        while True:
            agent = self._random.randrange(self.fleet.agents)
            if agent not in self._gone and agent not in self._dying:
                return agent


def rounds_of(
    spec: RunFile,
    model: ModelShape,
    blocks: Sequence[BlockShape],
    visited: Sequence[str],
    agents: int,
    step_s: float,
    rounds: int | None = None,
) -> Iterator[list[Visit]]:
    """The visits of each round: seats by the run's method, bytes by the planner's simulation of caches. `step_s`: of every agent."""
    names = [f"agent-{n:06}" for n in range(agents)]
    number = {name: n for n, name in enumerate(names)}
    frozen = _frozen(spec, blocks)
    common = _common(spec, frozen)
    count = min(rounds_in(spec, visited), rounds or 10**9)

    def emulator(_: str, now: Sequence[BlockShape], trained: Any) -> dict[str, str]:
        return {b.name: spec.compression.trained if b.name in trained else frozen[b.name] for b in now}

    moved = simulate(spec, model, blocks, visited, names, count, 0, emulator, frozen, common)
    sizes = {b.name: b.num_parameters for b in blocks}
    for at in range(count):
        seats = method_of(spec).seats(spec, visited, names, at, common)
        steps = spec.in_cycle(seats[0].cycle).train.steps or 1
        yield [
            Visit(number[t.agent], t.down, t.up, sum(sizes[name] for name in t.blocks), len(blocks) if t.down else 0, steps * step_s)
            for t in (next(moved) for _ in seats)
        ]  # fmt: skip


def whole_of(spec: RunFile, model: ModelShape, blocks: Sequence[BlockShape]) -> int:
    """Bytes of a first visit, about: all blocks frozen."""
    frozen = _frozen(spec, blocks)
    return sum(packed_bytes(b, frozen[b.name], model) for b in blocks)
