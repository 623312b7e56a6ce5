"""`fedcoord plan`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.output import Json, say_json
from fedcybgd.coordinator.domain.compression import plan_key
from fedcybgd.coordinator.domain.seat import called
from fedcybgd.shared.contract.plans import AgentPlan, PlanView
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.host.terminal import Terminal

terminal = Terminal()
MORE_ROOM = (
    "where memory is missing: an agent with more of it, for a visit is on one device and never spread over several; or a run file that asks for "
    "less: compression.policy int4 or auto, a smaller task.max_length or train.batch_size, train.optimizer adamw-8bit, method adapters"
)


def plan(
    file: Annotated[Path, typer.Argument(help="The run file (YAML).", exists=True, dir_okay=False)],
    tokens_per_s: Annotated[float | None, typer.Option(help="Speed of training, for the hours.", min=0.001)] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of each agent, for the hours and the memory that they take.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """What a run would ask of each agent: memory, megabytes, codecs, hours; and who cannot take part, and why."""
    view = Client().runs.plan(file, tokens_per_s=tokens_per_s, rows=rows)
    if as_json:
        say_json(PlanView, view)
    else:
        terminal.parts(draw(view))


def draw(view: PlanView) -> list[RenderableType]:
    """The answer of `POST /v1/plan` for people."""
    known = "sizes of its prepared shards" if view.prepared else "sizes estimated from shapes"
    hours = f", about {view.hours:.1f} hours" if view.hours is not None else ""
    at_once = f", {view.at_once} at once" if view.at_once > 1 else ""
    heading = f"{view.run} over {view.model}: {counted(view.rounds, 'round')}, {counted(len(view.visited), 'block')} a cycle{at_once}{hours} ({known})"
    parts: list[RenderableType] = [Text(heading)]
    if view.first_cycle_down_once < view.first_cycle_down:
        down, once = _mb(view.first_cycle_down), _mb(view.first_cycle_down_once)
        parts.append(Text(f"the first cycle takes {down} from the coordinator; {once} where all agents share one site cache"))
    parts += [Text(f"problem: {problem}", "red") for problem in view.problems]
    able = [agent for agent in view.agents if agent.able]
    parts += [_room(able), _traffic(able), *_unknown(able), *_visits(able)] if able else []
    parts += [Text(f"{a.name} cannot take part: {a.message} ({a.reason})", "yellow") for a in view.agents if not a.able]
    if any("of memory are missing" in (why or "") for a in view.agents for why in (a.message, *(v.why_not for v in a.visits))):
        parts.append(Text(MORE_ROOM, "dim"))
    return parts


def _room(agents: list[AgentPlan]) -> Table:
    """What a visit takes on each agent; beside the rest, in a table of its own, it would not fit a terminal of 80 columns."""
    table = Table("agent", "peak memory: largest / mean", "needs / may", "disk: needs / may")
    for agent in agents:
        table.add_row(
            agent.name, f"{_mb(agent.memory_largest)} / {_mb(agent.memory_mean)}", f"{_mb(agent.memory_needed)} / {_mb(agent.memory_allowed)}",
            f"{_mb(agent.disk_needed)} / {_mb(agent.disk_allowed)}",
        )  # fmt: skip
    return table


def _traffic(agents: list[AgentPlan]) -> Table:
    """What a cycle takes."""
    table = Table("agent", "visits a cycle", "down: first / later cycle", "up a cycle", "hours: training + transfer")
    for agent in agents:
        first, later = agent.first_cycle, agent.later_cycle
        table.add_row(
            agent.name, f"{agent.visits_per_cycle:.1f}", f"{_mb(first.down)} / {_mb(later.down if later else None)}", _mb(first.up),
            f"{_hours(agent.training_hours)} + {_hours(agent.transfer_hours)}",
        )  # fmt: skip
    return table


def _unknown(agents: list[AgentPlan]) -> list[RenderableType]:
    """What it takes to know the hours that are not."""
    training = (
        "--rows and --tokens-per-s say it (those of a visit: fedagent status)" if any(a.training_hours is None for a in agents) else ""
    )
    transfer = "limits.bandwidth_mbit in agent.toml" if any(a.transfer_hours is None for a in agents) else ""
    said = "; ".join(f"{what}: {how}" for what, how in (("training", training), ("transfer", transfer)) if how)
    return [Text(f"? is not known yet. {said}", "dim")] if said else []


def _visits(agents: list[AgentPlan]) -> list[RenderableType]:
    """Emulators: agents with the same one share their lines."""
    lines: dict[tuple[tuple[str, ...], int | None, str, str | None], list[str]] = {}
    for agent in agents:
        for visit in agent.visits:
            plan = {block: codec for codec, blocks in visit.codecs.items() for block in blocks}
            emulator = plan_key(dict(sorted(plan.items(), key=lambda item: _place(item[0])))) if plan else ""
            lines.setdefault((tuple(visit.blocks), visit.memory_bytes, emulator, visit.why_not), []).append(agent.name)
    if not lines:
        return []
    table = Table("block", "peak memory", "the others in", "agents")
    for (blocks, memory, emulator, why_not), names in sorted(lines.items(), key=lambda item: _place(item[0][0][0])):
        table.add_row(
            called(blocks),
            _mb(memory),
            why_not or emulator,
            ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else ""),
        )
    return [table]


def _place(block: str) -> tuple[int, int]:
    """Model order, by name."""
    kind, _, number = block.partition(".")
    order = ("embeddings", "layers", "norm", "pooler", "head")
    return (order.index(kind) if kind in order else len(order), int(number.partition("-")[0] or 0))


def _mb(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.0f} MB" if count >= 10_000_000 else f"{count / 1e6:.3g} MB"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.2g}"
