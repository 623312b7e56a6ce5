"""Policy `auto`: an agent gets the most faithful emulator that fits what it declares, and is not asked where none does."""

from typing import Any

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain import compression
from fedcybgd.coordinator.domain.compression import DoesNotFit, auto_ladder
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.emulators import choose, costing
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.contract.assignments import LeasedAssignment
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, events, start_run

AUTO: dict[str, Any] = {"compression": {"policy": "auto"}}


def rungs(live: LiveCoordinator, name: str) -> list[int]:
    """Memory that the plans of the ladder need for a visit of the first layer, in bytes, from the most faithful plan on."""
    with live.database.reading() as session:
        run = queries.run_by_name(session, name)
        spec = run.spec
        blocks, config = choose.for_plan(session, run, spec)
        assert config is not None
        trained = {"layers.0", "head"}
        agent = Agent(name="any", device=DeviceInfo(), limits=DeclaredLimits())
        _, costs = costing.costs_for(spec, config, blocks, trained, agent)
        return [costs.memory(plan) for plan in auto_ladder(spec.compression, [choose.facts_of_block(b) for b in blocks], trained)]


def codecs(assignment: LeasedAssignment | None) -> dict[str, str]:
    assert assignment is not None
    return {b.block: b.codec for b in assignment.manifest.blocks}


def claim(live: LiveCoordinator, hand: Hand, run: str, memory: int) -> LeasedAssignment | None:
    """Ask until the emulator has been made (then there is one), or the agent was turned down (then there is none)."""
    found: list[LeasedAssignment] = []

    def answered() -> bool:
        if (got := hand.claim(run, wait=0.5, limits={"memory_bytes": memory})) is not None:
            found.append(got)
        return bool(found) or "does_not_fit" in events(live, run)

    wait_for(answered)
    return found[0] if found else None


def test_without_a_limit_it_is_int8(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], **AUTO)
    assert codecs(hand.take(run))["layers.1"] == "int8"


def test_an_agent_with_less_memory_gets_fewer_bits(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], **AUTO)
    int8, int4 = rungs(live, run)[:2]
    assert int4 < int8
    got = codecs(claim(live, hand, run, int4))
    assert (got["layers.0"], got["layers.1"], got["embeddings"]) == ("exact", "int4", "int8")


def test_an_agent_that_nothing_fits_is_not_asked_and_the_run_says_so(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], **AUTO)
    assert claim(live, hand, run, 1_000_000) is None
    view = live.operator.get(f"/runs/{run}")
    assert view["state"] == "paused"
    assert "MB of memory are missing" in view["reason"]
    assert "does_not_fit" in events(live, run)


def test_another_agent_is_asked_instead(live: LiveCoordinator, model: str, hand: Hand) -> None:
    other = Hand(live)
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"}, **AUTO)
    assert claim(live, hand, run, 1_000_000) is None
    assert live.operator.get(f"/runs/{run}")["state"] == "running"
    assert codecs(other.take(run))["layers.1"] == "int8"


def test_the_ladder_ends_with_a_reason() -> None:
    """Pure: what is missing is said in bytes, for the plan that came closest."""
    spec = RunFile.model_validate({"name": "r", "model": "m", "task": {"kind": "causal-lm"}, **AUTO})
    blocks = [compression.BlockFacts(f"layers.{i}", "layer", 1000) for i in range(3)]
    costs = compression.Costs(memory=lambda plan: 100 + 10 * list(plan.values()).count("int8"), download=lambda _: 0)
    found = compression.plan(spec.compression, blocks, {"layers.0"}, compression.AgentLimits(memory_bytes=50), costs)
    assert isinstance(found, DoesNotFit)
    assert found.missing_memory_bytes == 50
