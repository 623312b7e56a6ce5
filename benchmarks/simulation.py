"""Where a coordinator saturates that no machine here could be asked: a discrete-event model of coordinator, line and agents.

    python -m benchmarks.simulation [--check [--check-agents N …]] [--agents N …] [--json FILE] [--svg DIR]

Who trains which block when, and the bytes that each visit moves, come from the project's own methods and planner; what things take from
`simulation.toml`, each number with its source. `--check` first measures real runs on this machine and says what the model makes of them
(ten minutes). Then models of 7 and 70 billion parameters, by up to 100,000 agents: hours of a cycle beside those that the plan says, and how
much of the web processes, the quick lane and the line is in use. docs/simulation.md has what came of it.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.busy_model import shapes
from benchmarks.report import arguments
from benchmarks.simulated import Coordinator, Costs, Fleet, Found, Simulation, rounds_of, whole_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.forecast import AgentFacts, forecast
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, blocks_of_run

INPUTS = Path(__file__).with_suffix(".toml")
PLANNED_AGENTS = 200
"""Agents that a plan is made of at the most: more of the same change its hours no more, as long as they are more than blocks"""


@dataclass(frozen=True)
class Model:
    name: str
    shape: ModelShape
    config: dict[str, Any]
    blocks: list[BlockShape]


def models() -> list[Model]:
    """Llama-2-7B's shape, and that of a Llama of 70 billion parameters."""
    small = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
    }
    large = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "vocab_size": 128256,
    }
    seventy = [BlockShape(n, kind, {t: tuple(s) for t, s in tensors.items()}, 2) for n, (kind, tensors) in shapes(83).items()]
    width, inner = 4096, 11008
    layer = {f"self_attn.{n}_proj": (width, width) for n in "qkvo"} | {f"mlp.{n}_proj": (inner, width) for n in ("gate", "up")}
    layer |= {"mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,)}
    seven = [BlockShape("embeddings", "embeddings", {"base.embed_tokens.weight": (32000, width)}, 2)]
    seven += [BlockShape(f"layers.{i}", "layer", {f"base.layers.{i}.{n}.weight": s for n, s in layer.items()}, 2) for i in range(32)]
    seven += [
        BlockShape("norm", "norm", {"base.norm.weight": (width,)}, 2),
        BlockShape("head", "head", {"lm_head.weight": (32000, width)}, 2),
    ]
    return [Model("7B", ModelShape.of(small), small, seven), Model("70B", ModelShape.of(large), large, seventy)]


@dataclass(frozen=True)
class Scenario:
    model: Model
    agents: int
    wave: int
    processes: int = 1
    lanes: int = 1
    stored_elsewhere: bool = False
    absent: float = 0.0
    fails: float = 0.0
    method: str = "block-cycle"

    @property
    def name(self) -> str:
        where = ", bytes from storage" if self.stored_elsewhere else ""
        worse = f", {self.absent:.0%} absent, {self.fails:.0%} of visits lost" if self.fails or self.absent else ""
        return f"{self.model.name}, {self.agents:,} agents, waves of {self.wave}, {self.processes} web, {self.lanes} lanes{where}{worse}"


def run_file(steps: dict[str, Any], wave: int) -> RunFile:
    schedule = {"cycles": 2, "wave": wave, "damping": 0.4 if wave > 1 else 1.0, "reassign_after_s": 1800}
    return RunFile.model_validate({
        "name": "r", "model": "m", "task": {"kind": "causal-lm", "max_length": int(steps["tokens"])}, "compression": {"policy": "int4"},
        "schedule": schedule, "train": {"steps": int(steps["steps"]), "batch_size": int(steps["batch"])},
    })  # fmt: skip


def simulated(one: Scenario, inputs: dict[str, Any]) -> tuple[Found, RunFile, list[BlockShape], list[str]]:
    spec = run_file(inputs["steps"], one.wave)
    blocks, visited = blocks_of_run(spec, one.model.config, one.model.blocks)
    fleet = Fleet(**inputs["fleet"], agents=one.agents, absent=one.absent, fails=one.fails)
    coordinator = Coordinator(**inputs["coordinator"], processes=one.processes, lanes=one.lanes, stored_elsewhere=one.stored_elsewhere)
    whole = whole_of(spec, one.model.shape, blocks)
    rounds = rounds_of(spec, one.model.shape, blocks, visited, one.agents, inputs["steps"][one.model.name])
    model = Simulation(Costs(**inputs["costs"]), coordinator, fleet, spec.schedule.reassign_after_s, whole)
    return model.run(rounds), spec, blocks, visited


def planned(one: Scenario, inputs: dict[str, Any], spec: RunFile, blocks: list[BlockShape], visited: list[str]) -> float:
    """The hours of the same run as `fedcoord plan` has them, for agents that have declared no memory."""
    count = min(one.agents, PLANNED_AGENTS)
    agents = [AgentFacts(f"agent-{n:06}", device="cuda", bytes_per_s=int(inputs["fleet"]["line_bytes_per_s"])) for n in range(count)]
    tokens_per_s = inputs["steps"]["batch"] * inputs["steps"]["tokens"] / inputs["steps"][one.model.name]
    return forecast(spec, one.model.shape, blocks, visited, agents, 0, tokens_per_s).hours or 0.0


def scenarios(agents: list[int]) -> list[Scenario]:
    found = []
    for model in models():
        half = -(-len(model.blocks) // 2)
        for count in agents:
            wave = min(half, count)
            found += [Scenario(model, count, 1), Scenario(model, count, wave)]
        most = max(agents)
        found += [
            Scenario(model, most, half, processes=8),
            Scenario(model, most, half, processes=8, lanes=8, stored_elsewhere=True),
            Scenario(model, most, half, processes=8, lanes=8, stored_elsewhere=True, absent=0.2, fails=0.02),
        ]
    return found


def bound(found: Found) -> str:
    """What is most in use."""
    if found.saturated:
        return "web process, by those who wait"
    shares = {"web process": found.web_share, "quick lane": found.lane_share, "line": found.line_share}
    name, share = max(shares.items(), key=lambda item: item[1])
    return f"{name} ({share:.0%})" if share > 0.5 else "nothing: agents train"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--check", action="store_true", help="measure real runs first, and foretell them")
    parser.add_argument("--check-agents", type=int, nargs="+", metavar="N", help="of so many agents each (default: 10 to 5,000)")
    parser.add_argument("--agents", type=int, nargs="+", default=[10, 1000, 100_000], help="(default: %(default)s)")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="write simulation-hours.svg and simulation-load.svg there")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if options.check:
        from benchmarks.simulated_check import FULL_WAVES_BY, check

        figures |= check(options.check_agents or FULL_WAVES_BY)
    inputs = tomllib.loads(INPUTS.read_text())
    rows = []
    print(
        "| run of two cycles | hours | hours of the plan | ratio | idle agents, of a web core | web | lane | line | stood in | what is full |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for one in scenarios(options.agents):
        found, spec, blocks, visited = simulated(one, inputs)
        plan = planned(one, inputs, spec, blocks, visited)
        hours = found.seconds / 3600
        rows.append((one, found, plan))
        figures[one.name] = {
            "hours": None if found.saturated else hours,
            "planned": plan,
            "web": found.web_share,
            "lane": found.lane_share,
            "line": found.line_share,
        }
        shares = " | ".join(f"{share:.0%}" for share in (found.idle_share, found.web_share, found.lane_share, found.line_share))
        took = "–" if found.saturated else f"{hours:.1f}"
        print(
            f"| {one.name} | {took} | {plan:.1f} | {'–' if found.saturated else f'{hours / plan:.2f}'} | {shares} | {found.stood_in} | {bound(found)} |",
            flush=True,
        )
    if options.svg is not None:
        from benchmarks.simulation_pictures import draw

        draw(rows, inputs, options.svg)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
