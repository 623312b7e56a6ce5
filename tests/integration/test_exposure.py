"""The exposure budget of a run: who has got how many blocks exact is never more than it says, whoever asks for whatever."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from fedcybgd.coordinator.db.models import Exposure
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, events, finish, last_visit, operator, refused, run_file, settled, start_run, unchanged

pytestmark = pytest.mark.database_decides

INT8 = {"policy": "int8", "calibration_rows": 0}
WHOLE = ["embeddings", "layers", "pooler"]
"""four visited blocks beside the head"""


@pytest.fixture
def hands(live: LiveCoordinator) -> list[Hand]:
    return [Hand(live) for _ in range(4)]


def budgeted(live: LiveCoordinator, model: str, who: list[Hand] | str, limit: int, **schedule: Any) -> str:
    return start_run(live, model, who, schedule=schedule, compression=INT8, exposure={"max_exact_blocks": limit})


def exact_blocks(live: LiveCoordinator, run: str) -> dict[str, set[str]]:
    """Agent → blocks of the run that it has got exact, as the ledger says."""
    run_id = live.operator.get(f"/runs/{run}")["id"]
    seen: dict[str, set[str]] = {}
    with live.database.reading() as session:
        for row in session.scalars(select(Exposure).where(Exposure.run_id == run_id, Exposure.codec == "exact")):
            seen.setdefault(row.agent_id, set()).add(row.block)
    return seen


def fetch_all(hand: Hand, assignment: Any) -> None:
    """Fetch every shard, as an agent does."""
    for ref in assignment.manifest.blocks:
        assert hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{ref.digest}").status_code == 200


PLANNED = [pytest.param(*values, marks=pytest.mark.one_database) for values in (("rotating", 3, 1), ("fixed", 2, 3))]


@pytest.mark.parametrize(("agents", "limit", "wave"), [*PLANNED, ("first_come", 3, 3)])
def test_over_a_whole_run_no_agent_gets_more_than_the_budget(
    live: LiveCoordinator, model: str, hands: list[Hand], agents: str, limit: int, wave: int
) -> None:
    run = budgeted(live, model, hands, limit, agents=agents, cycles=2, blocks=WHOLE, wave=wave, reassign_after_s=1)
    finish(live, run, hands)
    seen = exact_blocks(live, run)
    assert max(len(blocks) for blocks in seen.values()) <= limit
    assert set().union(*seen.values()) == {"embeddings", "layers.0", "layers.1", "pooler", "head"}


def test_a_manifest_brings_exact_what_is_trained_and_nothing_else(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = budgeted(live, model, [hand, other], 2, agents="fixed")
    assignment = hand.take(run)
    assert {b.block: b.codec for b in assignment.manifest.blocks if b.codec == "exact"} == {"layers.0": "exact", "head": "exact"}
    fetch_all(hand, assignment)
    assert list(exact_blocks(live, run).values()) == [{"layers.0", "head"}]


def test_a_stand_in_is_subject_to_the_budget(live: LiveCoordinator, model: str, hands: list[Hand]) -> None:
    run = budgeted(live, model, hands[:3], 2, agents="fixed", reassign_after_s=0, blocks=WHOLE[:2])
    first = hands[0].take(run)
    fetch_all(hands[0], first)
    hands[0].deliver(first)
    settled(live, run)
    assert last_visit(live, run)["meant_for"] == hands[1].name
    with unchanged(live, run):
        assert hands[0].claim(run) is None, "it has seen a block already, and another one is beyond its budget"
    stand_in = hands[2].take(run)
    assert stand_in.block == "layers.0"
    fetch_all(hands[2], stand_in)
    hands[2].deliver(stand_in)
    settled(live, run)
    # What was planned for the stand-in is beyond its budget now: the one that it stood in for may have it.
    assert last_visit(live, run)["meant_for"] is None
    assert hands[2].claim(run) is None
    hands[1].deliver(hands[1].take(run))
    assert settled(live, run)["state"] == "completed"


def test_what_was_only_held_does_not_count_once_it_is_given_back(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = budgeted(live, model, [hand, other], 2, agents="fixed", reassign_after_s=0)
    assert other.take(run).block == "layers.0"  # and fetches nothing
    assert other.claim("nothing") is None  # which gives it back
    hand.deliver(hand.take(run))
    assert settled(live, run)["rounds_done"] == 1
    assert other.take(run).block == "layers.1"


def test_what_was_fetched_counts_although_it_was_given_back(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = budgeted(live, model, [hand, other], 2, agents="fixed", reassign_after_s=0)
    fetch_all(other, other.take(run))
    assert other.claim("nothing") is None
    hand.deliver(hand.take(run))
    view = settled(live, run)
    assert (view["state"], view["rounds_done"]) == ("paused", 1)
    assert "no agent is left that may see block layers.1 within max_exact_blocks of 2" in view["reason"]
    assert "run_paused" in events(live, run)
    view = live.operator.post(f"/runs/{run}/resume")
    assert view["state"] == "paused", "nothing has changed"
    live.operator.post(f"/runs/{run}/cancel")


def test_an_agent_that_was_taken_out_is_nobody_who_may_see_a_block(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = budgeted(live, model, [hand, other], 2, agents="fixed", cycles=2, reassign_after_s=0)
    for agent in (hand, other):
        agent.deliver(agent.take(run))
        settled(live, run)
    live.operator.post(f"/runs/{run}/without", {"agent": other.name})
    assert settled(live, run)["rounds_done"] == 1
    view = live.operator.post(f"/runs/{run}/resume")
    assert view["state"] == "paused", "the one has seen too much, the other takes no part"
    assert "no agent is left that may see block layers.1 within max_exact_blocks of 2" in view["reason"]
    live.operator.post(f"/runs/{run}/cancel")


def test_a_run_open_to_all_goes_on_when_somebody_new_may_see_the_block(coordinators: Callable[..., LiveCoordinator], bert: Path) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    one, two = Hand(live), Hand(live)
    run = budgeted(live, "bert", "all", 2, agents="first_come")
    fetch_all(one, first := one.take(run))
    assert one.give_back(first, "other").status_code == 200
    fetch_all(two, again := two.take(run))
    two.deliver(again)
    view = settled(live, run)
    assert (view["state"], view["rounds_done"]) == ("paused", 1), "both have seen layers.0 and the head"
    late = Hand(live)
    assert live.operator.post(f"/runs/{run}/resume")["state"] == "running"
    assert one.claim(run) is None
    late.deliver(late.take(run))
    assert settled(live, run)["state"] == "completed"


def test_agents_that_cannot_see_all_blocks_are_too_few(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = live.create_run(run_file(model, [hand, other], schedule={"blocks": WHOLE}, compression=INT8, exposure={"max_exact_blocks": 2}))[
        "name"
    ]
    with unchanged(live, run):
        error = refused(operator(live).post(f"/runs/{run}/start"), 422, "exposure_budget_too_small")
    assert "2 agents may see 2 × 1 = 2 visited blocks, but the run visits 4" in error.message
    assert error.detail == {"limit": 2, "common": 1, "visited": 4, "agents": 2}


@pytest.mark.parametrize(
    ("policy", "limit", "said"),
    [
        ("none", 4, "all blocks exact: 5 blocks at least"),
        ("int8", 1, "2 blocks at least"),
    ],
)
def test_a_budget_with_which_no_visit_is_possible_fails_the_run(
    live: LiveCoordinator, model: str, policy: str, limit: int, said: str
) -> None:
    run = live.create_run(run_file(model, "all", compression={"policy": policy}, exposure={"max_exact_blocks": limit}))
    assert (run["state"], run["prepared"], run["blocks"]) == ("failed", False, [])
    assert said in run["reason"]
    assert "exposure_budget_too_small" in events(live, run["id"])


def test_without_compression_a_budget_of_all_blocks_is_enough(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], exposure={"max_exact_blocks": 5})
    finish(live, run, [hand])
    assert [len(blocks) for blocks in exact_blocks(live, run).values()] == [3], "what it fetched"


def test_the_ledger_says_who_got_what_in_which_codec(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = budgeted(live, model, [hand, other], 2, agents="fixed")
    fetch_all(hand, hand.take(run))
    entries = {e["block"]: (e["version"], e["codec"]) for e in live.operator.get("/exposure", agent=hand.name)}
    assert entries == {
        "embeddings": (0, "int8"),
        "layers.0": (0, "exact"),
        "layers.1": (0, "int8"),
        "pooler": (0, "int8"),
        "head": (0, "exact"),
    }
