"""What is planned for a machine with several cards: each is an agent, and a block that fits no card is refused with what is missing."""

import io

import pytest

from fedcybgd.coordinator.commands.plan import MORE_ROOM, draw
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning.forecast import AgentFacts, Forecast, forecast
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, blocks_of_run
from fedcybgd.coordinator.planning.traffic import PACKED
from fedcybgd.coordinator.services.operate.forecasts import _agent
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.plans import PlanView
from fedcybgd.shared.host.terminal import Terminal

WIDTHS = {"7b": (32, 4096, 11_008, 4096), "70b": (80, 8192, 28_672, 1024)}
CARD = 24 * 10**9
VISITED = ["layers.0", "layers.1", "layers.2", "layers.3"]


def four_cards(shape: str, memory: int = CARD, cards: int = 4) -> tuple[RunFile, Forecast]:
    layers, wide, inner, keys = WIDTHS[shape]
    config = {"model_type": "llama", "hidden_size": wide, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 32_000,
              "num_attention_heads": wide // 128, "num_key_value_heads": keys // 128}  # fmt: skip
    sizes = {"q": (wide, wide), "k": (keys, wide), "v": (keys, wide), "o": (wide, wide)}
    sizes |= {"gate": (inner, wide), "up": (inner, wide), "down": (wide, inner)}
    blocks = [
        BlockShape("embeddings", "embeddings", {"embed.weight": (32_000, wide)}, 2),
        *(BlockShape(f"layers.{i}", "layer", {f"layers.{i}.{n}.weight": s for n, s in sizes.items()}, 2) for i in range(layers)),
        BlockShape("norm", "norm", {"norm.weight": (wide,)}, 2),
        BlockShape("head", "head", {"lm_head.weight": (32_000, wide)}, 2),
    ]
    spec = RunFile.model_validate({
        "name": "r", "model": "m", "task": {"kind": "causal-lm", "max_length": 512}, "train": {"steps": 2, "batch_size": 1},
        "schedule": {"blocks": VISITED, "cycles": 1, "wave": 4, "agents": "fixed"}, "compression": {"policy": "int4"},
    })  # fmt: skip
    of_run, visited = blocks_of_run(spec, config, blocks)
    agents = [AgentFacts(f"card-{n}", device="cuda", device_bytes=memory, disk_bytes=100 * 10**9) for n in range(cards)]
    return spec, forecast(spec, ModelShape.of(config), of_run, visited, agents)


def told(spec: RunFile, found: Forecast, width: int = 1000) -> str:
    view = PlanView(run="r", model="m", prepared=False, rounds=found.rounds, visited=found.visited, problems=found.problems,
                    hours=found.hours, at_once=found.at_once, first_cycle_down=found.first_cycle[0],
                    first_cycle_down_once=found.first_cycle[1], agents=[_agent(spec, a) for a in found.agents])  # fmt: skip
    file = io.StringIO()
    Terminal(file=file, force_terminal=True, color_system=None, width=width).parts(draw(view))
    return file.getvalue()


def test_a_plan_is_read_in_a_terminal_of_80_columns_and_no_figure_is_broken() -> None:
    spec, found = four_cards("7b")
    tables = [line for line in told(spec, found, 80).splitlines() if line and line[0] in "┃│┏┡└"]
    assert max(map(len, tables)) <= 80
    cells = [cell.strip() for line in tables for cell in line.split("│")]
    agent = _agent(spec, found.agents[0])
    for of, whole in ((agent.memory_needed, agent.memory_allowed), (agent.memory_largest, agent.memory_mean)):
        assert of is not None
        assert whole is not None
        assert f"{of / 1e6:,.0f} MB / {whole / 1e6:,.0f} MB" in cells


def test_four_cards_make_the_four_visits_of_a_wave_each_with_its_own_memory() -> None:
    spec, found = four_cards("7b")
    assert found.rounds == 1
    assert found.problems == []
    assert [[visit.blocks for visit in agent.visits] for agent in found.agents] == [[(name,)] for name in VISITED]
    assert all(agent.memory_needed < CARD for agent in found.agents)
    text = told(spec, found)
    assert MORE_ROOM not in text
    assert "1 round, 4 blocks a cycle, 4 at once" in text
    assert "? is not known yet. training: --rows and --tokens-per-s" in text, "what the hours lack"


def test_cards_of_one_machine_that_share_a_cache_take_each_shard_once_from_the_coordinator() -> None:
    spec, found = four_cards("7b")
    down, once = found.first_cycle
    assert down == sum(agent.first_cycle.down for agent in found.agents)
    blocks = {name for agent in found.agents for visit in agent.visits for name in visit.codecs["int4"]}
    assert {"layers.0", "layers.31"} <= blocks
    # What is frozen for all, once for the four; for each its own layer exact, which the three others have in 4 bits.
    exact, four_bits = 2 * 202_383_360 * PACKED[EXACT], 202_383_360 * 0.5625 * PACKED["int4"]
    assert once == pytest.approx((down - 4 * exact - 12 * four_bits) / 4 + 4 * exact + 4 * four_bits, rel=1e-3)
    assert "where all agents share one site cache" in told(spec, found)


def test_where_nobody_fetches_what_another_has_a_cache_saves_nothing() -> None:
    spec, _ = four_cards("7b")
    alone = four_cards("7b", cards=1)[1]
    assert alone.first_cycle[0] == alone.first_cycle[1] > 0
    assert "site cache" not in told(spec, alone)


def test_a_block_that_fits_no_card_is_refused_with_what_is_missing_though_the_four_together_had_room() -> None:
    spec, found = four_cards("70b")
    assert [agent.why_not and agent.why_not[0] for agent in found.agents] == ["memory_limit"] * 4
    assert found.problems == [f"no agent can train {', '.join(VISITED)} within its limits"]
    assert all(agent.why_not and "are missing" in agent.why_not[1] and "24,000 MB allowed" in agent.why_not[1] for agent in found.agents)
    text = told(spec, found)
    assert MORE_ROOM in text
    assert "never spread over several" in text
    assert [agent.why_not for agent in four_cards("70b", 80 * 10**9)[1].agents] == [None] * 4
