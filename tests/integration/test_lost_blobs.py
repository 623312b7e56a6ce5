"""A blob is damaged or gone, on either side: it is named, made or fetched again where it can be, and nobody else is blamed."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, EncodedShard, Patch, Run
from fedcybgd.coordinator.services.path import judge
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.digests import digest_of_file
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, run_file, settled, start_run

Harm = Callable[[Path], None]
INT8: dict[str, Any] = {"compression": {"policy": "int8"}, "delta": {"codec": "int8"}, "schedule": {"cycles": 2}}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARMS: list[Any] = [flip, Path.unlink]


def place(live: LiveCoordinator, digest: str) -> Path:
    return live.settings.blobs / digest[:2] / digest


def told(live: LiveCoordinator, run: str) -> list[tuple[str, str]]:
    return [(e["code"], e["message"]) for e in live.operator.get(f"/runs/{run}")["events"]]


def blocks(live: LiveCoordinator, run: str) -> dict[str, tuple[int, str]]:
    return {b["name"]: (b["version"], b["digest"]) for b in live.operator.get(f"/runs/{run}")["blocks"]}


def begin(live: LiveCoordinator, model: str, folder: Path, **more: Any) -> tuple[LightAgent, str]:
    agent = LightAgent(live, folder)
    spec = run_file(model, [], **INT8 | {"seed": 5} | more) | {"agents": [agent.name]}
    return agent, live.create_run(spec, start=True)["name"]


def work(live: LiveCoordinator, agent: LightAgent, run: str, between: Callable[[Any], None] = lambda _: None) -> Any:
    """Do all rounds; `between` sees each assignment before its visit."""
    while live.state_of(run) == "running":
        if (assignment := agent.claim(run, wait=0.3)) is not None:
            between(assignment)
            agent.visit(assignment)
    return settled(live, run)


@pytest.fixture(scope="module")
def undisturbed(live: LiveCoordinator, model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    agent, run = begin(live, model, tmp_path_factory.mktemp("undisturbed"))
    assert work(live, agent, run)["state"] == "completed"
    return blocks(live, run)


@pytest.mark.parametrize(("harm", "packed"), [(flip, True), (empty, False), (Path.unlink, True), (Path.unlink, False)])
def test_an_encoded_shard_is_made_again_from_the_exact_one(
    live: LiveCoordinator, model: str, tmp_path: Path, harm: Harm, packed: bool, undisturbed: dict[str, Any]
) -> None:
    agent, run = begin(live, model, tmp_path)
    harmed: list[str] = []

    def between(assignment: Any) -> None:
        if not harmed:
            sent = assignment.manifest.blocks
            ref = next(b for b in sent if b.codec == "int8")
            harmed.append(ref.packed.digest if packed else ref.digest)
            place(live, ref.digest).unlink()
            harm(place(live, ref.packed.digest))
            if not packed:  # the agent takes the shard itself where that is the cheaper way
                sent[sent.index(ref)] = ref.model_copy(update={"packed": None})

    view = work(live, agent, run, between)
    assert view["state"] == "completed", view["reason"]
    assert blocks(live, run) == undisturbed
    codes = [code for code, _ in told(live, run)]
    assert not {"shard_corrupt", "delta_rejected", "run_paused", "other"} & set(codes)
    assert digest_of_file(place(live, harmed[0])) == harmed[0]
    assert next(m for c, m in told(live, run) if c in ("blob_damaged", "blob_missing")).startswith("a blob is ")


@pytest.mark.parametrize("harm", HARMS)
def test_the_present_exact_shard_is_made_again_from_its_packed_form(
    live: LiveCoordinator, model: str, tmp_path: Path, harm: Harm, undisturbed: dict[str, Any]
) -> None:
    """Found by the engine, when the delta comes that changes it."""
    agent, run = begin(live, model, tmp_path)
    rounds: list[str] = []

    def between(assignment: Any) -> None:
        rounds.append(assignment.block)
        if len(rounds) == 3:  # the block was changed in this run: nobody else has its shard
            agent.cache.drop([])
            harm(place(live, blocks(live, run)[assignment.block][1]))

    view = work(live, agent, run, between)
    assert view["state"] == "completed", view["reason"]
    assert blocks(live, run) == undisturbed
    codes = [code for code, _ in told(live, run)]
    assert "blob_mended" in codes
    lost = next(m for c, m in told(live, run) if c in ("blob_damaged", "blob_missing"))
    assert f"block {rounds[2]} of run {run}, version 1, exact" in lost


@pytest.mark.parametrize("harm", HARMS)
def test_what_cannot_be_made_again_pauses_the_run_by_name_until_it_is_put_back(
    live: LiveCoordinator, model: str, tmp_path: Path, harm: Harm, undisturbed: dict[str, Any]
) -> None:
    agent, run = begin(live, model, tmp_path)
    kept: dict[Path, bytes] = {}

    def between(assignment: Any) -> None:
        if blocks(live, run)["layers.1"][0] == 1 and not kept and assignment.block == "layers.1":
            digest = blocks(live, run)["layers.1"][1]
            with live.database.reading() as session:
                packed = session.scalars(select(EncodedShard.packed_digest).where(EncodedShard.source == digest)).all()
                steps = session.scalars(select(Patch.digest).where(Patch.target == digest)).all()
            for lost in (digest, *packed, *steps):
                kept[place(live, lost)] = place(live, lost).read_bytes()
                harm(place(live, lost))

    view = work(live, agent, run, between)
    assert view["state"] == "paused"
    assert f"block layers.1 of run {run}, version 1, exact" in view["reason"]
    assert "put it back as blobs/" in view["reason"]
    for path, data in kept.items():
        path.write_bytes(data)
    live.operator.post(f"/runs/{run}/resume")
    view = work(live, agent, run, between)
    assert view["state"] == "completed", view["reason"]
    assert blocks(live, run) == undisturbed
    assert "delta_rejected" not in [code for code, _ in told(live, run)]


@pytest.mark.parametrize("harm", HARMS)
def test_a_delta_that_is_lost_before_it_is_taken_is_sent_again(
    live: LiveCoordinator, model: str, tmp_path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = LocalBlobStore.adopt
    harmed: list[str] = []

    def adopt_and_harm(store: LocalBlobStore, path: Path, digest: str) -> None:
        adopt(store, path, digest)
        if not harmed:
            harmed.append(digest)
            harm(store._place(digest))

    monkeypatch.setattr(LocalBlobStore, "adopt", adopt_and_harm)
    agent, run = begin(live, model, tmp_path, seed=100 + HARMS.index(harm))  # deltas that the store has not seen yet
    view = work(live, agent, run)
    assert harmed
    assert view["state"] == "completed", view["reason"]
    assert {name: version for name, (version, _) in blocks(live, run).items() if version} == {"layers.0": 2, "layers.1": 2, "head": 4}
    assert len(agent.trainer.requests) == 4, "nothing was trained twice"
    assert not {"delta_rejected", "blob_damaged", "blob_missing"} & {code for code, _ in told(live, run)}


@pytest.mark.parametrize("harm", HARMS)
def test_a_delta_that_is_lost_before_it_is_judged_is_trained_again(
    live: LiveCoordinator, model: str, tmp_path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_judge = judge.judge
    harmed: list[str] = []

    def harm_and_judge(session: Session, run: Run, assignment: Assignment, now: datetime) -> None:
        assert assignment.delta_digest is not None
        if not harmed:
            harmed.append(assignment.delta_digest)
            harm(place(live, assignment.delta_digest))
        to_judge(session, run, assignment, now)

    monkeypatch.setattr(judge, "judge", harm_and_judge)
    agent, run = begin(live, model, tmp_path, seed=200 + HARMS.index(harm))
    view = work(live, agent, run)
    assert harmed
    assert view["state"] == "completed", view["reason"]
    assert {name: version for name, (version, _) in blocks(live, run).items() if version} == {"layers.0": 2, "layers.1": 2, "head": 4}
    codes = [code for code, _ in told(live, run)]
    assert "delta_rejected" not in codes
    assert ("blob_missing" if harm is Path.unlink else "blob_damaged") in codes


@pytest.mark.parametrize("harm", HARMS)
def test_an_agents_cache_may_be_damaged_between_any_two_visits(
    live: LiveCoordinator, model: str, tmp_path: Path, harm: Harm, undisturbed: dict[str, Any]
) -> None:
    """Shards, bases of patches, its own deltas, files: everything that it holds."""
    agent, run = begin(live, model, tmp_path)

    def between(_: Any) -> None:
        for path in (tmp_path / "cache").iterdir():
            harm(path)

    view = work(live, agent, run, between)
    assert view["state"] == "completed", view["reason"]
    assert blocks(live, run) == undisturbed
    assert not {"shard_corrupt", "delta_rejected", "other"} & {code for code, _ in told(live, run)}


def test_a_patch_that_is_lost_is_gone_round(live: LiveCoordinator, model: str, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    agent, run = begin(live, model, tmp_path)
    lost: list[str] = []

    def between(assignment: Any) -> None:
        for ref in assignment.manifest.blocks:
            for patch in ref.patches:
                agent.cache.drop([patch.digest])
                place(live, patch.digest).unlink(missing_ok=True)
                lost.append(patch.digest)

    view = work(live, agent, run, between)
    assert lost
    assert view["state"] == "completed", view["reason"]
    assert blocks(live, run) == undisturbed
    assert not {"shard_corrupt", "other"} & {code for code, _ in told(live, run)}


def test_an_agent_waits_while_a_blob_is_put_back(live: LiveCoordinator, model: str, hand: Hand) -> None:
    """The base block itself is gone, and nobody can make it: the agent is told to ask again, the operator which block it is."""
    run = start_run(live, model, [hand], seed=4242)
    assignment = hand.take(run)
    head = next(b for b in assignment.manifest.blocks if b.block == "head")
    with live.database.transaction() as session:
        for row in session.scalars(select(EncodedShard).where(EncodedShard.source == head.digest)):
            session.delete(row)
    data = place(live, head.digest).read_bytes()
    empty(place(live, head.digest))
    answer = hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{head.digest}")
    assert (answer.status_code, answer.json()["code"]) == (503, "blob_awaited")
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}"))["state"] == "paused" and v)
    assert f"block head of run {run}, version 0, exact" in view["reason"]
    place(live, head.digest).write_bytes(data)
    assert hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{head.digest}").content == data
    live.operator.post(f"/runs/{run}/resume")
    hand.deliver(assignment)
    wait_for(lambda: live.operator.get(f"/runs/{run}")["rounds_done"] == 1)
    live.operator.post(f"/runs/{run}/cancel")


@pytest.mark.parametrize(
    ("block", "advice"), [("layers.0", r"adding model \S+ again under another name"), ("head", "creating a run with the same")]
)
def test_what_only_the_beginning_leads_to_is_made_by_beginning_again(
    live: LiveCoordinator, model: str, hand: Hand, bert: Path, block: str, advice: str
) -> None:
    """The reason of the pause says how, and that way leads to the same bytes."""
    more: dict[str, Any] = {"seed": 4000 + len(block)}
    run = start_run(live, model, [hand], **more)
    assignment = hand.take(run)
    digest = next(b for b in assignment.manifest.blocks if b.block == block).digest
    with live.database.transaction() as session:
        for row in session.scalars(select(EncodedShard).where(EncodedShard.source == digest)):
            session.delete(row)
    data = place(live, digest).read_bytes()
    place(live, digest).unlink()
    hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{digest}")
    view = wait_for(lambda: (v := live.operator.get(f"/runs/{run}"))["state"] == "paused" and v)
    assert re.search(advice, view["reason"])
    if block == "head":
        live.create_run(run_file(model, [hand], **more))
    else:
        assert str(bert) in view["reason"]
        live.add_model(fresh("again"), bert)
    assert place(live, digest).read_bytes() == data
    live.operator.post(f"/runs/{run}/resume")
    hand.deliver(assignment)
    wait_for(lambda: live.operator.get(f"/runs/{run}")["rounds_done"] == 1)
    live.operator.post(f"/runs/{run}/cancel")
