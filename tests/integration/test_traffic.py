"""What crosses the wire: as little as can be, counted alike on both sides, and whole or thrown away."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file
from sqlalchemy import select

from fedcybgd.agent.assignment_run import fetch
from fedcybgd.agent.errors import Unreachable, VisitFailed
from fedcybgd.agent.training.shards import materialise
from fedcybgd.coordinator.db.models import Agent, Exposure, Patch
from fedcybgd.shared.contract.assignments import LeasedAssignment, UploadOffset
from fedcybgd.shared.contract.digests import digest_of_file
from tests.support.light import LightAgent, traffic
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import fresh, run_file, settled

DEFAULTS: dict[str, Any] = {"compression": {"policy": "int8", "delta_patches": True}, "delta": {"codec": "int8"}}
_seeds = itertools.count(30_000)


def begin(live: LiveCoordinator, model: str, agents: list[LightAgent], **more: Any) -> str:
    """A run under way whose deltas no other run has."""
    spec = run_file(model, "all", **DEFAULTS | {"seed": next(_seeds)} | more)
    run = live.create_run(spec | {"agents": [a.name for a in agents]}, start=True)
    return str(run["name"])


def pair(live: LiveCoordinator, tmp_path: Path) -> list[LightAgent]:
    return [LightAgent(live, tmp_path / word, fresh(f"light-{word}")) for word in ("a", "b")]


def next_visit(live: LiveCoordinator, run: str, agents: list[LightAgent]) -> tuple[LightAgent, LeasedAssignment]:
    """Whoever is asked for the next round, and its assignment."""
    settled(live, run)
    for _ in range(20):
        for agent in agents:
            if (assignment := agent.claim(run)) is not None:
                return agent, assignment
    raise AssertionError("nobody got work")


def counts(live: LiveCoordinator, run: str, agent: str, number: int) -> tuple[int, int]:
    """Bytes down and up of a visit, by the coordinator's ledger."""
    found = {kind: amount for (name, round, kind), amount in traffic(live, run).items() if (name, round) == (agent, number)}
    return sum(found.get(kind, 0) for kind in ("shard", "patch", "file")), found.get("delta", 0)


@pytest.mark.parametrize(("agents", "trained"), [("fixed", "exact"), ("rotating", "exact"), ("rotating", "int8")])
def test_both_sides_count_the_same_and_a_second_visit_fetches_only_what_changed(
    live: LiveCoordinator, model: str, tmp_path: Path, agents: str, trained: str
) -> None:
    both = pair(live, tmp_path)
    for agent in both:
        agent.trainer.scale = 1e-5
    run = begin(live, model, both, schedule={"cycles": 2, "agents": agents}, compression=DEFAULTS["compression"] | {"trained": trained})
    seen: dict[str, dict[str, tuple[int, str]]] = {}
    downs: dict[str, list[int]] = {a.name: [] for a in both}
    for number in range(4):
        agent, assignment = next_visit(live, run, both)
        refs = {b.block: b for b in assignment.manifest.blocks}
        assert {refs[name].codec for name in assignment.train.trained} == {trained}
        agent.visit(assignment)
        had = seen.setdefault(agent.name, {})
        changed = {b for b, ref in refs.items() if had.get(b) != (ref.version, ref.codec)}
        blobs = {
            d: b for b, ref in refs.items() for d in (ref.digest, ref.packed.digest if ref.packed else "", *(p.digest for p in ref.patches))
        }
        assert {blobs[d] for d in agent.fetched if d in blobs} <= changed, "what it has is not fetched"
        assert (set(agent.fetched) & {f.digest for f in assignment.manifest.files} != set()) is (not had), "files once"
        had |= {b: (ref.version, ref.codec) for b, ref in refs.items()}
        settled(live, run)
        metrics = live.operator.get(f"/runs/{run}/assignments")[number]["metrics"]
        wait_for(lambda n=number, m=metrics, a=agent: counts(live, run, a.name, n) == (m["bytes_down"], m["bytes_up"]), limit=10)
        downs[agent.name].append(metrics["bytes_down"])
        if agents == "fixed" and number >= 2:
            own = refs[assignment.block]
            assert [p.kind for p in own.patches] == ["delta"]
            assert not {blob for blob, block in blobs.items() if block == own.block} & set(agent.fetched), "its own delta is the step"
    assert all(second < first / (1 if (agents, trained) == ("rotating", "exact") else 2) for first, second in downs.values())
    assert agents == "rotating" or "patch" in {kind for _, _, kind in traffic(live, run)}
    view = live.operator.get(f"/runs/{run}")
    assert view["bytes"] == {
        "down": sum(a for (_, _, k), a in traffic(live, run).items() if k != "delta"),
        "up": sum(a for (_, _, k), a in traffic(live, run).items() if k == "delta"),
    } | {k: v for k, v in view["bytes"].items() if k not in ("down", "up")}  # fmt: skip


def test_a_chain_of_two_steps_leads_to_the_present_shard(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    both = pair(live, tmp_path)
    run = begin(live, model, both, schedule={"cycles": 3, "blocks": ["layers.0"], "agents": "first_come"})
    late, early = both
    late.trainer.scale = early.trainer.scale = 1e-5
    first = late.claim(run, 20)
    assert first is not None
    late.visit(first)
    settled(live, run)
    assignment = early.claim(run, 20)
    assert assignment is not None
    early.visit(assignment)
    settled(live, run)
    last = late.claim(run, 20)
    assert last is not None
    ref = next(b for b in last.manifest.blocks if b.block == "layers.0")
    assert (ref.version, [p.kind for p in ref.patches]) == (2, ["delta", "delta"])
    late.visit(last)
    way = next(s for s in late.trainer.requests[-1].shards if s.block == "layers.0")
    assert [p.digest for p in way.patches] == [ref.patches[0].base, ref.digest], "its own delta, and the other's"
    assert ref.patches[0].digest in late.fetched
    assert ref.patches[1].digest not in late.fetched
    assert digest_of_file(late.cache.path(ref.digest)) == ref.digest


def test_who_comes_again_after_several_rounds_gets_one_patch_over_all_of_them(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    both = pair(live, tmp_path)
    compression = {"policy": "int8", "trained": "int8"}
    run = begin(live, model, both, schedule={"cycles": 5, "blocks": ["layers.0"], "agents": "rotating"}, compression=compression)
    had: dict[str, str] = {}
    for _ in range(5):
        agent, assignment = next_visit(live, run, both)
        ref = next(b for b in assignment.manifest.blocks if b.block == "layers.0")
        agent.visit(assignment)
        assert digest_of_file(agent.cache.path(ref.digest)) == ref.digest
        if (before := had.get(agent.name)) is not None:
            over = ref.patches[0]
            assert (over.base, over.kind, over.digest in agent.fetched) == (before, "difference", True)
            with live.database.reading() as session:
                found = session.scalars(select(Patch).where(Patch.kind == "difference", Patch.digest != over.digest)).all()
            assert over.size < sum(step.size for step in found if step.base == before or step.target == ref.digest)
        had[agent.name] = ref.digest
    assert sorted(had) == sorted(a.name for a in both)


def test_the_delta_of_another_is_no_step_unless_the_run_file_says_so(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    one, other = pair(live, tmp_path)
    schedule = {"cycles": 3, "blocks": ["layers.0"], "agents": "first_come"}
    run = begin(live, model, [one, other], schedule=schedule, compression={"policy": "int8"})
    for agent in (one, other):
        agent.trainer.scale = 1e-5
    deltas = []
    for agent in (one, one, other):
        settled(live, run)
        assignment = agent.claim(run, 20)
        assert assignment is not None
        ref = next(b for b in assignment.manifest.blocks if b.block == "layers.0")
        whose = [deltas.index(p.digest) for p in ref.patches]
        assert whose == {0: [], 1: [0], 2: []}[len(deltas)], "its own delta is a step, and that of another is none"
        assert assignment.manifest.digests().isdisjoint(deltas) is (not whose)
        agent.visit(assignment)
        settled(live, run)
        deltas.append(live.operator.get(f"/runs/{run}/assignments")[len(deltas)]["delta_digest"])
    assert {p.kind for b in assignment.manifest.blocks for p in b.patches} <= {"difference"}
    assert not set(deltas[:2]) & set(other.fetched)


def test_a_delta_that_leads_to_several_blocks_is_in_the_exposure_of_all(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    one, other = pair(live, tmp_path)
    schedule = {"always": ["head", "embeddings"], "cycles": 2, "agents": "first_come"}
    run = begin(
        live, model, [one, other], schedule=schedule, compression={"policy": "none", "delta_patches": True}, delta={"codec": "int4"}
    )
    one.visit(next_visit(live, run, [one])[1])
    _, left = next_visit(live, run, [other])
    for shard in fetch(other.tools, left).shards:  # it fetches all, and stops
        materialise(shard)
    other.give_back(left, "stopping")
    one.visit(next_visit(live, run, [one])[1])
    _, assignment = next_visit(live, run, [other])
    other.visit(assignment)
    refs = [b for b in assignment.manifest.blocks if b.block in ("layers.1", "embeddings")]
    assert refs[0].patches[0].digest == refs[1].patches[0].digest
    assert refs[0].patches[0].digest in other.fetched, "one delta for both"
    assert not {ref.digest for ref in refs} & set(other.fetched)
    with live.database.reading() as session:
        query = select(Exposure.block, Exposure.version).join(Agent, Agent.id == Exposure.agent_id).where(Agent.name == other.name)
        exposed = {(block, version) for block, version in session.execute(query)}
    assert {(ref.block, ref.version) for ref in refs} <= exposed


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x55
    path.write_bytes(data)


def other_values(path: Path) -> None:
    save_file({n: t + 1 if t.is_floating_point() else t for n, t in load_file(path).items()}, path)


@pytest.mark.parametrize("harm", [flip, other_values])
@pytest.mark.parametrize("block", ["layers.0", "layers.1"])
def test_a_base_that_went_bad_costs_no_attempt(
    live: LiveCoordinator, model: str, tmp_path: Path, harm: Callable[[Path], None], block: str
) -> None:
    agent = LightAgent(live, tmp_path)
    agent.trainer.scale = 1e-5
    run = begin(live, model, [agent], schedule={"cycles": 2})
    for _ in range(2):
        agent.visit(next_visit(live, run, [agent])[1])
    # Round 2 trains layers.0, which its own delta leads to, and has layers.1 in int8, which a difference leads to.
    _, assignment = next_visit(live, run, [agent])
    ref = next(b for b in assignment.manifest.blocks if b.block == block)
    base = ref.patches[0].base
    assert agent.cache.has(base)
    harm(agent.cache.path(base))
    agent.visit(assignment)
    assert not {patch.digest for patch in ref.patches} & set(agent.fetched), "nothing leads there from a damaged base"
    assert digest_of_file(agent.cache.path(ref.digest)) == ref.digest
    assert settled(live, run)["rounds_done"] == 3
    assert live.operator.get(f"/runs/{run}/assignments")[2]["attempt"] == 1


def test_bytes_damaged_on_the_way_are_thrown_away_and_fetched_again(
    live: LiveCoordinator, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = LightAgent(live, tmp_path)
    run = begin(live, model, [agent])
    assignment = agent.claim(run, 20)
    assert assignment is not None
    whole = httpx.Response.iter_raw
    with monkeypatch.context() as patched:
        patched.setattr(httpx.Response, "iter_raw", lambda self, *a: (bytes([c[0] ^ 1]) + c[1:] for c in whole(self, *a)))
        with pytest.raises(VisitFailed) as failed:
            agent.visit(assignment)
    assert failed.value.reason == "shard_corrupt"
    assert agent.cache.size() == 0
    agent.give_back(assignment, "shard_corrupt")
    again = agent.claim(run, 20)
    assert again is not None
    assert again.attempt == 2
    agent.visit(again)
    assert settled(live, run)["rounds_done"] == 1


def test_an_upload_that_was_cut_twice_is_counted_once(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    agent = LightAgent(live, tmp_path)
    run = begin(live, model, [agent])
    assignment = agent.claim(run, 20)
    assert assignment is not None
    sent = agent.client.upload
    amounts = []

    def cut(assignment_id: str, digest: str, path: Path, offset: int, size: int) -> UploadOffset:
        """Half of what is left arrives, and the wire is cut; at the third time, all of it."""
        if len(amounts) == 2:
            return sent(assignment_id, digest, path, offset, size)
        amounts.append(size // 2)
        sent(assignment_id, digest, path, offset, size // 2)
        raise Unreachable("cut")

    agent.client.upload = cut  # type: ignore[method-assign]
    agent.visit(assignment)
    settled(live, run)
    visit = live.operator.get(f"/runs/{run}/assignments")[0]
    assert len(amounts) == 2
    size = live.store.size(visit["delta_digest"])
    assert visit["metrics"]["bytes_up"] == traffic(live, run)[agent.name, 0, "delta"] == size
