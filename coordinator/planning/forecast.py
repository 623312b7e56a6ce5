"""Says before a run what it will ask of each agent: memory, bytes, hours, emulators; and who cannot take part, and why."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedcybgd.coordinator.domain import compression, exposure
from fedcybgd.coordinator.domain.compression import AgentLimits, BlockFacts, Costs, DoesNotFit, Plan
from fedcybgd.coordinator.domain.methods.registry import method_of, rounds_in
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning import duration
from fedcybgd.coordinator.planning.memory import Memory, estimate
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, compact, shard_bytes
from fedcybgd.coordinator.planning.traffic import Transfer, leaving, packed_bytes, simulate
from fedcybgd.shared.contract.codec import EXACT

MOST_VISITS = 4000
"""Visits that are simulated at the most; what follows is taken to be like the last cycles."""


@dataclass(frozen=True)
class AgentFacts:
    """What is known of an agent; 0: it does not say."""

    name: str
    revoked: bool = False
    device: str = "cpu"
    memory_bytes: int = 0
    """that it allows training to take, as it declared"""
    device_bytes: int = 0
    """that its device has"""
    bytes_per_s: int = 0
    disk_bytes: int = 0
    """that shards may take of its disk"""


@dataclass(frozen=True)
class VisitForecast:
    """Blocks that an agent is to train in one visit, at the most that it takes in any cycle."""

    blocks: tuple[str, ...]
    memory: Memory | None
    """None: the visit is not for this agent"""
    codecs: Mapping[str, list[str]]
    """codec → blocks"""
    down: int
    """bytes fetched for the first of these visits"""
    up: int
    why_not: str | None = None


@dataclass(frozen=True)
class Moved:
    down: int = 0
    up: int = 0


@dataclass(frozen=True)
class AgentForecast:
    agent: AgentFacts
    why_not: tuple[str, str] | None
    """code and reason, for an agent that cannot take part"""
    visits: list[VisitForecast] = field(default_factory=list)
    visits_per_cycle: float = 0.0
    memory_needed: int = 0
    """bytes of the whole training process in its largest visit: what a limit must allow"""
    disk: int = 0
    """bytes of the cache that its largest emulator takes"""
    first_cycle: Moved = Moved()
    later_cycle: Moved | None = None
    """mean of the cycles after the first; None: there are none"""
    whole_run: Moved = Moved()
    training_hours: float | None = None
    transfer_hours: float | None = None


@dataclass(frozen=True)
class Forecast:
    rounds: int
    visited: list[str]
    agents: list[AgentForecast]
    problems: list[str]
    """what stands against the run as a whole"""
    hours: float | None
    at_once: int = 0
    first_cycle: tuple[int, int] = (0, 0)


def limits_of(spec: RunFile, agent: AgentFacts) -> AgentLimits:
    """What an agent allows: the memory that it declared, else that of its device; and, where it declared the speed of its line,
    what that carries while a visit waits for its own agent (`schedule.reassign_after_s`); and its disk."""
    download = int(agent.bytes_per_s * spec.schedule.reassign_after_s)
    return AgentLimits(agent.memory_bytes or agent.device_bytes or None, download or None, agent.disk_bytes or None)


def costs_of(spec: RunFile, model: ModelShape, blocks: Sequence[BlockShape], trained: Collection[str], agent: AgentFacts) -> Costs:
    """What a plan costs an agent that holds nothing yet."""

    def memory(plan: Plan) -> int:
        found = estimate(spec, model, blocks, plan, trained, agent.device, agent.memory_bytes)
        return found.whole

    def download(plan: Plan) -> int:
        return sum(packed_bytes(b, plan[b.name], model) for b in blocks)

    return Costs(memory, download, lambda plan: disk_bytes(model, blocks, plan))


def disk_bytes(model: ModelShape, blocks: Sequence[BlockShape], plan: Plan) -> int:
    """What has to lie in an agent's cache for a visit: its shards. For the packed ones beside them there need be no room (agent/assignment_run.py)."""
    return sum(shard_bytes(b, plan[b.name], model) for b in blocks)


def facts_of_shape(block: BlockShape) -> BlockFacts:
    return BlockFacts(block.name, block.kind, block.num_parameters, version=block.version, influence=block.influence)


class _Planner:
    """Plans of agents, remembered: they depend on what was updated, not on how often."""

    def __init__(self, spec: RunFile, model: ModelShape, agents: Mapping[str, AgentFacts]) -> None:
        self._spec, self._model, self._agents = spec, model, agents
        self._known: dict[object, Plan | DoesNotFit] = {}
        self.refused: dict[tuple[str, tuple[str, ...]], DoesNotFit] = {}

    def __call__(self, agent: str, blocks: Sequence[BlockShape], trained: Collection[str]) -> Plan | None:
        limits = limits_of(self._spec, self._agents[agent])
        key = (limits, self._agents[agent].device, frozenset(trained), tuple(b.version > 0 for b in blocks))
        if key not in self._known:
            costs = costs_of(self._spec, self._model, blocks, trained, self._agents[agent])
            self._known[key] = compression.plan(self._spec.compression, [facts_of_shape(b) for b in blocks], trained, limits, costs)
        found = self._known[key]
        if isinstance(found, DoesNotFit):
            along = set(self._spec.schedule.always)
            visited = tuple(b.name for b in blocks if b.name in trained and b.name not in along)
            self.refused[agent, visited or tuple(b.name for b in blocks if b.name in trained)] = found
            return None
        return found


def forecast(
    spec: RunFile,
    model: ModelShape,
    blocks: Sequence[BlockShape],
    visited: Sequence[str],
    agents: Sequence[AgentFacts],
    file_bytes: int = 0,
    tokens_per_s: float | None = None,
    rows: int | None = None,
) -> Forecast:
    """What a run over these blocks asks of `agents`, all that are enrolled.

    `file_bytes` are those of configuration and tokenizer, `tokens_per_s` the speed of every agent, `rows` how many rows each has
    (how long training takes is not known without it when the run counts in epochs).
    """
    outside = {a.name: why for a in agents if (why := _outside(spec, a))}
    members = {a.name: a for a in _ordered(spec, agents) if a.name not in outside}
    problems = _problems(spec, blocks, visited, agents, list(members))
    total = rounds_in(spec, visited)
    if problems:
        reason = "exposure_budget" if members else "no_agents"
        out = [AgentForecast(a, outside.get(a.name, (reason, problems[-1]))) for a in agents]
        return Forecast(total, list(visited), out, problems, None)
    planner = _Planner(spec, model, members)
    frozen = _frozen(spec, blocks)
    common = _common(spec, frozen)
    begins = [0, rounds_in(spec, visited, 1)]
    at_once = [len(method_of(spec).seats(spec, visited, list(members), number, common)) for number in begins]
    visits_per_cycle = at_once[1] * method_of(spec).rounds_per_cycle(spec, visited)
    cycles = min(spec.schedule.cycles, max(2, min(len(members) + 2, MOST_VISITS // max(1, visits_per_cycle))))
    transfers = list(
        simulate(
            spec, model, blocks, visited, list(members), rounds_in(spec, visited, cycles), file_bytes, planner,
            frozen, common, rows,
        )
    )  # fmt: skip
    own: dict[str, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        own[transfer.agent].append(transfer)
    refused: dict[str, dict[tuple[str, ...], DoesNotFit]] = defaultdict(dict)
    for (name, visited_blocks), unfit in planner.refused.items():
        refused[name][visited_blocks] = unfit
    estimates, idle, found = _Estimates(spec, model, blocks, rows), {}, []
    for agent in agents:
        if agent.name in outside:
            found.append(AgentForecast(agent, outside[agent.name]))
        elif agent.name in own or agent.name in refused:
            found.append(_of_agent(spec, blocks, agent, own[agent.name], refused[agent.name], cycles, tokens_per_s, estimates))
        else:  # whoever gets nothing to do is like everybody else with the same facts
            alike = replace(agent, name="")
            if alike not in idle:
                idle[alike] = _of_agent(spec, blocks, alike, [], {}, cycles, tokens_per_s, estimates)
            found.append(replace(idle[alike], agent=agent))
    orphans = sorted(set(visited) - {name for t in transfers for name in t.blocks}, key=list(visited).index)
    if orphans:
        problems.append(f"no agent can train {', '.join(orphans)} within its limits")
    hours = _hours(found, at_once, duration.first_share(spec, rows))
    return Forecast(total, list(visited), found, problems, hours, min(at_once[1], len(own)), leaving(transfers, 0))


def _outside(spec: RunFile, agent: AgentFacts) -> tuple[str, str] | None:
    if agent.revoked:
        return "revoked", "it was revoked by the operator"
    if spec.agents != "all" and agent.name not in spec.agents:
        return "not_in_run", "the run file's `agents` does not name it"
    return None


def _ordered(spec: RunFile, agents: Sequence[AgentFacts]) -> list[AgentFacts]:
    """As a run orders them when it starts: by name, or as the run file has them."""
    if spec.agents == "all":
        return sorted(agents, key=lambda a: a.name)
    known = {a.name: a for a in agents}
    return [known[name] for name in spec.agents if name in known]


def _frozen(spec: RunFile, blocks: Sequence[BlockShape]) -> Plan:
    """The codecs in which blocks are frozen, for whoever has no limits."""
    plan = compression.plan(spec.compression, [facts_of_shape(b) for b in blocks], set())
    return plan.plan if isinstance(plan, DoesNotFit) else plan


def _common(spec: RunFile, frozen: Plan) -> set[str]:
    return exposure.common_blocks(spec, list(frozen), [name for name, codec in frozen.items() if codec == EXACT])


def _problems(
    spec: RunFile, blocks: Sequence[BlockShape], visited: Sequence[str], agents: Sequence[AgentFacts], members: Sequence[str]
) -> list[str]:
    problems = []
    if spec.agents != "all" and (unknown := [name for name in spec.agents if name not in {a.name for a in agents}]):
        problems.append(f"these agents of the run file are not enrolled: {', '.join(unknown)}")
    if not members:
        problems.append("no agent is enrolled that could take part")
    try:
        method_of(spec).check(spec, visited, _common(spec, _frozen(spec, blocks)), len(members) or None)
    except exposure.ExposureBudgetTooSmall as error:
        problems.append(error.message)
    return problems


class _Estimates:
    """What emulators take of memory and disk: reckoned once for all agents that are alike, and for all visits by one plan."""

    def __init__(self, spec: RunFile, model: ModelShape, blocks: Sequence[BlockShape], rows: int | None) -> None:
        self._spec, self._model, self._blocks, self._rows = spec, model, blocks, rows
        self._memory: dict[object, Memory] = {}
        self._disk: dict[object, int] = {}

    def memory(self, plan: Plan, visited: tuple[str, ...], agent: AgentFacts) -> Memory:
        key = (frozenset(plan.items()), visited, agent.device, agent.memory_bytes)
        if key not in self._memory:
            trained = {*visited, *self._spec.schedule.always}
            self._memory[key] = estimate(self._spec, self._model, self._blocks, plan, trained, agent.device, agent.memory_bytes, self._rows)
        return self._memory[key]

    def tokens(self) -> tuple[float, float] | None:
        """As `duration.visit_tokens` has them."""
        return duration.visit_tokens(self._spec, self._rows, self._model.row_tokens(self._spec))

    def disk(self, plan: Plan) -> int:
        key = frozenset(plan.items())
        if key not in self._disk:
            self._disk[key] = disk_bytes(self._model, self._blocks, plan)
        return self._disk[key]


def _of_agent(
    spec: RunFile, blocks: Sequence[BlockShape], agent: AgentFacts, transfers: Sequence[Transfer],
    refused: Mapping[tuple[str, ...], DoesNotFit], cycles: int, tokens_per_s: float | None, estimates: _Estimates,
) -> AgentForecast:  # fmt: skip
    by_blocks: dict[tuple[str, ...], list[tuple[Transfer, Memory]]] = defaultdict(list)
    needed = disk = 0
    for transfer in transfers:
        memory = estimates.memory(transfer.plan, transfer.blocks, agent)
        by_blocks[transfer.blocks].append((transfer, memory))
        needed = max(needed, memory.whole)
        disk = max(disk, estimates.disk(transfer.plan))
    visits = []
    for pairs in by_blocks.values():
        first, most = pairs[0][0], max((memory for _, memory in pairs), key=lambda m: m.peak)
        visits.append(VisitForecast(first.blocks, most, compact(first.plan), first.down, first.up))
    visits += [VisitForecast(names, None, {}, 0, 0, why.reason) for names, why in refused.items() if names not in by_blocks]
    why_not = None
    if refused and not by_blocks:
        why = next(iter(refused.values()))
        short = "memory_limit" if why.missing_memory_bytes else "disk_limit" if why.missing_disk_bytes else "nothing_fits"
        why_not = (short, why.reason)
    moved = [
        Moved(sum(t.down for t in transfers if t.cycle == cycle), sum(t.up for t in transfers if t.cycle == cycle))
        for cycle in range(cycles)
    ]
    later = _mean(moved[1:])
    left = spec.schedule.cycles - cycles
    whole = Moved(
        sum(m.down for m in moved) + (later.down * left if later else 0), sum(m.up for m in moved) + (later.up * left if later else 0)
    )
    count = len(transfers) / cycles
    tokens = estimates.tokens()
    return AgentForecast(
        agent, why_not, sorted(visits, key=lambda v: [b.name for b in blocks].index(v.blocks[0])), count, needed, disk, moved[0], later, whole,
        training_hours=count * sum(tokens) / tokens_per_s / 3600 if tokens and tokens_per_s else None,
        transfer_hours=(whole.down + whole.up) / agent.bytes_per_s / 3600 if agent.bytes_per_s else None,
    )  # fmt: skip


def _mean(moved: Sequence[Moved]) -> Moved | None:
    return Moved(sum(m.down for m in moved) // len(moved), sum(m.up for m in moved) // len(moved)) if moved else None


def _hours(agents: Sequence[AgentForecast], at_once: Sequence[int], first: float) -> float | None:
    """Of the whole run: visits of the strict cycle come one after another, those of one round at once.

    `at_once`: how many those are in the first cycle, and in the others; `first`: its share of the work.
    """
    able = [a for a in agents if a.visits]
    if not able or any(a.training_hours is None for a in able):
        return None
    whole = sum((a.training_hours or 0) + (a.transfer_hours or 0) for a in able)
    return whole * (first / min(at_once[0], len(able)) + (1 - first) / min(at_once[1], len(able)))
