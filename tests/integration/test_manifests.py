"""The emulator that a lease brings: the codecs of its policy, shards that are made once and ahead of need, and what is deleted of them."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from sqlalchemy import select

import fedcybgd.coordinator.engine.encode as engine
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Block, EncodedShard, Job, Patch, Run
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of, digest_of_file
from fedcybgd.shared.files import lossless
from fedcybgd.shared.tensors.deltas import encode_delta
from tests.support import models
from tests.support.decoded import decode
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, operator, refused, run_file, settled, start_run

TRAINED = {"layers.0", "head"}
_seeds = iter(range(10_000, 20_000))


@pytest.fixture(scope="module")
def deep(live: LiveCoordinator, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a BERT with four layers."""
    name = fresh("deep-bert")
    live.add_model(name, models.tiny_bert(tmp_path_factory.mktemp("deep"), layers=4))
    return name


def held_out(live: LiveCoordinator) -> dict[str, Any]:
    """An `evaluate` section with eight rows that are there."""
    data = "".join(json.dumps({"text": f"my card {word}", "label": i % 3}) + "\n" for i, word in enumerate(models.WORDS[:8])).encode()
    digest = digest_of(data)
    answer = operator(live).put(f"/held-out/{digest}", params={"name": "rows.jsonl"}, content=data)
    assert answer.is_success, answer.text
    return {"held_out": "rows.jsonl", "digest": digest, "every": "end"}


def compressed(policy: str, live: LiveCoordinator | None = None, **more: Any) -> dict[str, Any]:
    """Sections of a run file under a policy, with a head that no other run has."""
    sections: dict[str, Any] = {"compression": {"policy": policy, **more}, "delta": {"codec": "int8"}, "seed": next(_seeds)}
    return sections | ({"evaluate": held_out(live)} if live is not None else {})


def codecs(assignment: LeasedAssignment) -> dict[str, str]:
    found = {b.block: b.codec for b in assignment.manifest.blocks}
    return found | dict.fromkeys(assignment.manifest.dropped, "dropped")


def fetch(hand: Hand, assignment: LeasedAssignment, digest: str) -> bytes:
    answer = hand.http.get(f"/assignments/{assignment.assignment_id}/shards/{digest}")
    assert answer.status_code == 200, answer.text
    return answer.content


def deliver(hand: Hand, assignment: LeasedAssignment, scale: float = 1e-5) -> str:
    """Send a small random delta in the codec asked for; its digest."""
    draw = torch.Generator().manual_seed(assignment.train.seed)
    tensors = {n: scale * torch.randn(t.shape, generator=draw) for n, t in sorted(hand.delta(assignment).items())}
    data = save(dict(encode_delta(tensors, assignment.delta_codec)), {"codec": assignment.delta_codec})
    answer = hand.send(assignment, data)
    assert answer.status_code == 202, answer.text
    return digest_of(data)


def encoded(live: LiveCoordinator, run: str) -> dict[str, set[str]]:
    """Present blocks of a run → codecs in which they are there, both whole and packed."""
    with live.database.reading() as session:
        run_id = session.scalars(select(Run.id).where(Run.name == run)).one()
        found: dict[str, set[str]] = {}
        for name, digest in session.execute(select(Block.name, Block.digest).where(Block.run_id == run_id)).all():
            rows = session.scalars(select(EncodedShard).where(EncodedShard.source == digest)).all()
            assert all(live.store.has(d) for row in rows for d in (row.digest, row.packed_digest))
            found[name] = {row.codec for row in rows}
    return found


def encode_jobs(live: LiveCoordinator, run: str) -> int:
    with live.database.reading() as session:
        query = select(Job.id).join(Run, Run.id == Job.subject).where(Run.name == run, Job.kind == "encode")
        return len(session.scalars(query).all())


@pytest.mark.parametrize(
    ("policy", "frozen"),
    [
        ("none", {"embeddings": "exact", "layers.1": "exact", "pooler": "exact"}),
        ("int8", {"embeddings": "int8", "layers.1": "int8", "pooler": "int8"}),
        ("int4", {"embeddings": "int8", "layers.1": "int4", "pooler": "int8"}),
        ("auto", {"embeddings": "int8", "layers.1": "int8", "pooler": "int8"}),
    ],
)
def test_what_is_trained_is_exact_and_the_rest_as_the_policy_says(
    live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path, policy: str, frozen: dict[str, str]
) -> None:
    run = start_run(live, model, [hand], **compressed(policy))
    assignment = hand.take(run, wait=30)
    assert codecs(assignment) == frozen | dict.fromkeys(TRAINED, "exact")
    digests = {b["name"]: b["digest"] for b in live.operator.get(f"/runs/{run}")["blocks"]}
    for ref in assignment.manifest.blocks:
        assert (ref.digest == digests[ref.block]) is (ref.codec == "exact")
        (tmp_path / "whole").write_bytes(fetch(hand, assignment, ref.digest))
        assert (digest_of_file(tmp_path / "whole"), (tmp_path / "whole").stat().st_size) == (ref.digest, ref.size)
        decode(tmp_path / "whole", ref.codec)
        assert ref.packed is not None
        (tmp_path / "packed").write_bytes(fetch(hand, assignment, ref.packed.digest))
        assert digest_of_file(tmp_path / "packed") == ref.packed.digest
        lossless.unpack(tmp_path / "packed", tmp_path / "unpacked", ref.size)
        assert (tmp_path / "unpacked").read_bytes() == (tmp_path / "whole").read_bytes()


def test_hybrid_drops_the_not_yet_updated_and_prunes_the_updated(live: LiveCoordinator, deep: str, hand: Hand, tmp_path: Path) -> None:
    run = start_run(live, deep, [hand], **compressed("hybrid", live))
    first = codecs(hand.take(run, wait=30))
    assert {b: first[b] for b in ("embeddings", "layers.0", "pooler", "head")} == dict.fromkeys(
        ("embeddings", "layers.0", "pooler", "head"), "exact"
    )
    assert sorted(first[f"layers.{i}"] for i in (1, 2, 3)) == ["dropped", "exact", "exact"], "half of three, rounded down"
    deliver(hand, hand.take(run))
    settled(live, run)
    assert "pruned:25" in encoded(live, run)["layers.0"], "made ahead, with the new version"
    second = hand.take(run, wait=30)
    found = codecs(second)
    assert (found["layers.0"], found["layers.1"]) == ("pruned:25", "exact"), "an updated layer is never dropped"
    assert sorted(found[f"layers.{i}"] for i in (2, 3)) == ["dropped", "exact"]
    pruned = next(b for b in second.manifest.blocks if b.block == "layers.0")
    (tmp_path / "pruned").write_bytes(fetch(hand, second, pruned.digest))
    weights = decode(tmp_path / "pruned", "pruned:25")
    assert weights["encoder.layer.0.intermediate.dense.weight"].shape[0] == 48


@pytest.mark.parametrize("more", [{"policy": "hybrid"}, {"policy": "int8", "floor": 0.9}])
def test_what_goes_by_calibration_rows_is_refused_without_them(live: LiveCoordinator, model: str, hand: Hand, more: dict[str, Any]) -> None:
    for sections in ({"compression": more}, {"compression": {**more, "calibration_rows": 0}, "evaluate": held_out(live)}):
        answer = operator(live).post("/runs", json=run_file(model, [hand], **sections))
        assert "evaluate.held_out" in refused(answer, 422, "calibration_missing").message


def test_all_codecs_of_the_policy_are_made_before_the_start_and_with_each_new_version(
    live: LiveCoordinator, model: str, hand: Hand
) -> None:
    run = live.create_run(run_file(model, [hand], **compressed("int4")))["name"]
    settled(live, run)
    found = encoded(live, run)
    assert "int4" in found["layers.0"] & found["layers.1"]
    assert "int8" in found["embeddings"] & found["pooler"]
    assert {"exact", "int8"} <= found["head"]
    live.operator.post(f"/runs/{run}/start")
    for again in (True, False):
        settled(live, run)
        assignment = hand.take(run, wait=0)  # at once: what it gets exact was packed while the visit before was made
        deliver(hand, assignment)
        settled(live, run)
        found = encoded(live, run)
        assert "int4" in found[assignment.block]
        assert "exact" not in found[assignment.block], "nobody asks for it before the next cycle"
        assert ("exact" in found["head"]) is again, "it is trained along in the next round too, if there is one"


def test_a_second_run_of_a_model_finds_its_shards_made(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    sections = compressed("int4")
    first, second = (live.create_run(run_file(model, [agent], **sections))["name"] for agent in (hand, other))
    for run in (first, second):
        settled(live, run)
        live.operator.post(f"/runs/{run}/start")
    assert hand.take(first).manifest.blocks == other.take(second).manifest.blocks
    assert encode_jobs(live, first) == 1
    assert encode_jobs(live, second) == 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds up the encoding of shards until it is set."""
    opened, encode = threading.Event(), engine.encode

    def wait(*arguments: Any) -> Any:
        assert opened.wait(60)
        return encode(*arguments)

    monkeypatch.setattr(engine, "encode", wait)
    yield opened
    opened.set()


def test_no_lease_before_its_shards_are_there_and_a_waiting_claim_is_answered_then(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, gate: threading.Event
) -> None:
    sections = compressed("int8")
    runs = [start_run(live, model, [agent], **sections) for agent in (hand, other)]  # both want the same shards, made once
    assert encode_jobs(live, runs[1]) == 0
    with ThreadPoolExecutor(2) as pool:
        claims = [pool.submit(agent.claim, run, 50) for agent, run in zip((hand, other), runs, strict=True)]
        wait_for(lambda: live.operator.get("/status")["waiting_claims"] >= 2)
        for run in runs:
            view = live.operator.get(f"/runs/{run}/assignments")[-1]
            assert (view["state"], view["attempt"]) == ("pending", 0)
        assert not any(claim.done() for claim in claims)
        gate.set()
        began = time.monotonic()
        leased = [claim.result() for claim in claims]
    assert all(assignment is not None and assignment.attempt == 1 for assignment in leased)
    assert time.monotonic() - began < 20, "nobody waits for the end of a poll"


def later(live: LiveCoordinator) -> None:
    """Tidy up as if the grace of what nothing needs now were over."""
    for passed in (timedelta(), timedelta(seconds=live.settings.keep_blobs_s + 60)):
        tidy(live.settings, live.database, live.store, utcnow() + passed)


def rows(live: LiveCoordinator) -> tuple[dict[str, EncodedShard], dict[str, Patch]]:
    """Of all encoded shards and patches: digest of what they lead to → row."""
    with live.database.reading() as session:
        shards = session.scalars(select(EncodedShard)).all()
        patches = session.scalars(select(Patch)).all()
        session.expunge_all()
    return {row.digest: row for row in shards}, {row.target: row for row in patches}


def test_superseded_shards_and_steps_are_deleted_and_what_is_needed_stays(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = compressed("int8")
    run = start_run(live, model, [hand], schedule={"cycles": 3}, **sections)
    manifests = []
    for _ in range(3):
        manifests.append(assignment := hand.take(run, wait=30))
        deliver(hand, assignment)
        settled(live, run)
    refs = [{b.block: b for b in m.manifest.blocks} for m in manifests]
    last = hand.take(run, wait=30)  # leased, and not delivered: layers.1, with layers.0 at version 2 in int8
    now = {b.block: b for b in last.manifest.blocks}
    assert (now["layers.0"].version, now["layers.0"].codec, len(now["layers.0"].patches)) == (2, "int8", 2)
    newest, oldest = now["layers.0"].patches
    monkeypatch.setattr("fedcybgd.coordinator.services.upkeep.garbage.MAX_STEPS", 1)
    later(live)

    shards, patches = rows(live)
    assert now["layers.0"].digest in shards
    assert newest.base not in shards, "version 1 in int8 is nobody's any more"
    assert (now["layers.0"].digest in patches, newest.base in patches) == (True, False)
    head = refs[1]["head"]
    assert head.packed is not None
    assert head.digest not in shards
    assert not live.store.has(head.digest)
    assert not live.store.has(head.packed.digest)
    for ref in refs[0].values():
        if ref.block in ("embeddings", "pooler", "layers.0"):
            assert ref.digest in shards, "the model's own"
    for ref in now.values():
        wanted = [ref.digest, *([ref.packed.digest] if ref.packed else []), *(p.digest for p in ref.patches)]
        assert all(live.store.has(digest) for digest in wanted), "the lease names it"
        assert all(fetch(hand, last, digest) for digest in wanted)
    deliver(hand, last)
    settled(live, run)
    later(live)
    assert not live.store.has(oldest.digest), "that lease has ended"
    assert not live.store.has(newest.base)
    assert live.store.has(newest.digest)
    for name in ("embeddings", "layers.0"):  # unchanged since: no lease names them, and the next one will
        packed = now[name].packed
        assert packed is not None
        assert live.store.has(now[name].digest)
        assert live.store.has(packed.digest)

    # The head of the beginning is wanted again: it is made again.
    again = start_run(live, model, [other], **sections)
    found = {b.block: b for b in other.take(again, wait=30).manifest.blocks}
    first = refs[0]["head"]
    assert found["head"].digest == first.digest
    assert first.packed is not None
    assert found["head"].packed == first.packed
    assert live.store.has(first.packed.digest)
    for name in (run, again):
        live.operator.post(f"/runs/{name}/cancel")
