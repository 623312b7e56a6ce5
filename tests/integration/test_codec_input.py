"""Deltas in every codec: added to the bit; in another codec, damaged or without sense: refused with nothing kept. And manifests in no codec."""

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from fedcybgd.agent import worker
from fedcybgd.agent.client import Client
from fedcybgd.agent.settings import Config, Home
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import MAGIC
from fedcybgd.shared.tensors.deltas import add_decoded, decoded, encode_delta
from tests.support.light import LightAgent, LightTrainer
from tests.support.live import LiveCoordinator
from tests.support.visits import (
    Hand,
    Tensors,
    events,
    fresh,
    refused,
    run_file,
    settled,
    shard_tensors,
    start_run,
    unchanged,
    versions,
)

BIAS = "encoder.layer.0.output.dense.bias"
WEIGHT = "encoder.layer.0.output.dense.weight"
CODECS = ["float32", "bfloat16", "int8", "int4"]


def random_delta(hand: Hand, assignment: LeasedAssignment, scale: float = 1e-3) -> Tensors:
    draw = torch.Generator().manual_seed(assignment.round + 1)
    return {n: scale * torch.randn(t.shape, generator=draw) for n, t in sorted(hand.delta(assignment).items())}


def coded(tensors: Tensors, codec: str) -> Tensors:
    return dict(encode_delta(tensors, codec))


def saved(tensors: Tensors, codec: str | None) -> bytes:
    return save(tensors, {"codec": codec} if codec else None)


def packed(data: bytes, folder: Path) -> bytes:
    (folder / "to-pack").write_bytes(data)
    return b"".join(lossless.pack(folder / "to-pack"))


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_applied_is_exactly_the_decoded_delta(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path, codec: str) -> None:
    run = start_run(live, model, [hand], schedule={"damping": 0.4}, delta={"codec": codec})
    for number, wrap in enumerate([packed, lambda data, folder: data]):  # both forms are taken
        assignment = hand.take(run, wait=20)
        assert assignment.delta_codec == codec
        bases = hand.base(assignment)
        plain = saved(coded(random_delta(hand, assignment), codec), codec)
        answer = hand.send(assignment, wrap(plain, tmp_path))
        assert answer.status_code == 202, answer.text
        assert settled(live, run)["rounds_done"] == number + 1
        digests = {b["name"]: b["digest"] for b in live.operator.get(f"/runs/{run}")["blocks"]}
        (tmp_path / "plain").write_bytes(plain)
        with safe_open(tmp_path / "plain", "pt") as file:
            for block, base in bases.items():
                new = shard_tensors(live, digests[block])
                for name, tensor in base.items():
                    delta = decoded(file, name, tuple(tensor.shape), codec)
                    assert torch.equal(new[name], add_decoded(tensor, [(delta, 0.4)]))
                    assert not torch.equal(new[name], tensor)


@pytest.fixture(scope="module")
def held(live: LiveCoordinator, model: str) -> tuple[Hand, str, LeasedAssignment]:
    """One assignment of a run with int8 deltas, for all that is refused."""
    hand = Hand(live)
    run = start_run(live, model, [hand], lease_s=3600, delta={"codec": "int8"})
    return hand, run, hand.take(run, wait=20)


def other_codec(codec: str) -> Callable[[Tensors, Path], bytes]:
    return lambda good, folder: saved(coded(good, codec), codec)


def labelled(codec: str | None) -> Callable[[Tensors, Path], bytes]:
    return lambda good, folder: saved(coded(good, "int8"), codec)


def changed(change: Callable[[Tensors], Any]) -> Callable[[Tensors, Path], bytes]:
    def spoil(good: Tensors, folder: Path) -> bytes:
        tensors = coded(good, "int8")
        change(tensors)
        return saved(tensors, "int8")

    return spoil


def in_packing(harm: Callable[[bytes], bytes]) -> Callable[[Tensors, Path], bytes]:
    return lambda good, folder: harm(packed(saved(coded(good, "int8"), "int8"), folder))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def bomb(good: Tensors, folder: Path) -> bytes:
    return packed(saved(coded(good, "int8") | {"zeros": torch.zeros(1 << 24)}, "int8"), folder)


def claimed_bomb(good: Tensors, folder: Path) -> bytes:
    return MAGIC + b"\x01" + (1 << 20).to_bytes(4, "little") + b"\x01" + (20).to_bytes(4, "little") + zlib.compress(bytes(1 << 20), 9)[:20]


SCALES = WEIGHT + "::scales"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_codec("float32"), "in codec 'float32', this run asks for int8"),
        (other_codec("bfloat16"), "in codec 'bfloat16'"),
        (other_codec("int4"), "in codec 'int4'"),
        (labelled("int2"), "in codec 'int2'"),
        (labelled("x" * 5000), "in codec 'xxx"),
        (labelled(None), "in codec 'float32'"),
        (lambda good, folder: saved(good, "int8"), "missing:"),
        (lambda good, folder: saved(coded(good, "int4"), "int8"), "foreign:"),
        (changed(lambda t: t.pop(SCALES)), f"missing: {SCALES}"),
        (changed(lambda t: t.pop(WEIGHT)), f"missing: {WEIGHT}"),
        (changed(lambda t: t.update({WEIGHT + "::offsets": t[SCALES].clone()})), f"foreign: {WEIGHT}::offsets"),
        (changed(lambda t: t.update({BIAS + "::scales": torch.ones(1)})), f"foreign: {BIAS}::scales"),
        (changed(lambda t: t.update({SCALES: t[SCALES][:-1].clone()})), f"{SCALES} has shape [31], must be [32]"),
        (changed(lambda t: t.update({SCALES: t[SCALES].bfloat16()})), f"{SCALES} is BF16, must be F32"),
        (changed(lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.uint8)})), f"{WEIGHT} is U8, must be I8"),
        (changed(lambda t: t.update({WEIGHT: t[WEIGHT][:, :33].clone()})), f"{WEIGHT} has shape [32, 33], must be [32, 64]"),
        (in_packing(lambda data: data[:-1]), "no whole safetensors file"),
        (in_packing(lambda data: data[: len(data) // 2]), "no whole safetensors file"),
        (in_packing(lambda data: data[:8]), "no whole safetensors file"),
        (in_packing(lambda data: data + b"x"), "bytes after the end"),
        (in_packing(lambda data: b"FEDPTCH1" + data[8:]), "no whole safetensors file"),
        (in_packing(lambda data: data[:8] + data), "no whole safetensors file"),
        # Of other values than the good deltas of other tests, whose bytes the store has.
        (lambda good, folder: packed(saved(coded({n: 3 * t for n, t in good.items()}, "int4"), "int4"), folder), "in codec 'int4'"),
        (bomb, "unpacks to more than"),
        (claimed_bomb, "no whole safetensors file"),
    ],
)
def test_what_was_not_offered_or_does_not_unpack_is_not_taken(
    live: LiveCoordinator, held: tuple[Hand, str, LeasedAssignment], tmp_path: Path, spoil: Callable[[Tensors, Path], bytes], said: str
) -> None:
    hand, run, assignment = held
    data = spoil(random_delta(hand, assignment), tmp_path)
    assert len(data) < assignment.max_delta_bytes
    with unchanged(live, run):
        error = refused(hand.send(assignment, data), 422, "delta_refused")
    assert said in error.message
    assert len(error.message) < 1000
    assert hand.offset(assignment, digest_of(data)) == {"offset": 0, "complete": False}, "nothing of it is kept"
    assert not live.store.has(digest_of(data))
    assert not list(live.settings.uploads.glob(f"{assignment.assignment_id}-*")), "nothing is left aside"
    assert hand.renew(assignment).status_code == 200, "the lease goes on"


@pytest.mark.parametrize("harm", [flipped, lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_what_a_packed_delta_holds_is_for_the_engine_to_find_wrong(
    live: LiveCoordinator, model: str, hand: Hand, other: Hand, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    """It unpacks what the web process only measures. The digest is that of the damaged bytes, so an agent has made them so."""
    run = start_run(live, model, [hand, other], schedule={"blocks": ["layers.0"]}, delta={"codec": "int8"})
    assignment = hand.take(run, wait=20)
    before = versions(live, run)
    assert hand.send(assignment, in_packing(harm)(random_delta(hand, assignment), tmp_path)).status_code == 202
    settled(live, run)
    assert versions(live, run) == before
    visits = live.operator.get(f"/runs/{run}/assignments")
    assert [(visit["state"], (visit["reason"] or "")[:10]) for visit in visits] == [("rejected", "malformed:"), ("pending", "")]
    other.send(again := other.take(run, wait=20), packed(saved(coded(random_delta(other, again), "int8"), "int8"), tmp_path))
    assert settled(live, run)["state"] == "completed"


def test_rows_of_four_bits_must_be_halved(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], delta={"codec": "int4"})
    assignment = hand.take(run, wait=20)
    good = coded(random_delta(hand, assignment), "int4")
    for name, spoilt, said in (
        (WEIGHT, good[WEIGHT][:, :31].clone(), f"{WEIGHT} has shape [32, 31], must be [32, 32]"),
        (WEIGHT, torch.zeros(32, 64, dtype=torch.uint8), f"{WEIGHT} has shape [32, 64], must be [32, 32]"),
        (WEIGHT, good[WEIGHT].view(torch.int8), f"{WEIGHT} is I8, must be U8"),
        (SCALES, good[SCALES].repeat(1, 2), f"{SCALES} has shape [32, 2], must be [32, 1]"),
    ):
        with unchanged(live, run):
            error = refused(hand.send(assignment, saved(good | {name: spoilt}, "int4")), 422, "delta_refused")
        assert said in error.message
    assert hand.send(assignment, saved(good, "int4")).status_code == 202


def test_what_agents_are_sent_is_no_delta(live: LiveCoordinator, held: tuple[Hand, str, LeasedAssignment]) -> None:
    hand, run, assignment = held
    with unchanged(live, run):
        for ref in assignment.manifest.blocks:
            assert ref.packed is not None
            refused(hand.submit(assignment, ref.packed.digest), 409, "upload_incomplete")
    assert all(live.store.has(ref.packed.digest) for ref in assignment.manifest.blocks if ref.packed)


@pytest.fixture(scope="module")
def judged(live: LiveCoordinator, model: str) -> dict[str, tuple[Hand, str]]:
    """A run for each codec whose deltas are all rejected."""
    hands = {codec: Hand(live) for codec in ("int8", "int4")}
    return {codec: (hand, start_run(live, model, [hand], delta={"codec": codec})) for codec, hand in hands.items()}


def filled(name: str, value: float) -> Callable[[Tensors], None]:
    def fill(tensors: Tensors) -> None:
        tensors[name].flatten()[0] = value

    return fill


@pytest.mark.parametrize(
    ("codec", "spoil", "said"),
    [
        ("int8", filled(SCALES, float("nan")), f"{SCALES}: has values that are not finite"),
        ("int8", filled(SCALES, float("inf")), f"{SCALES}: has values that are not finite"),
        ("int8", filled(SCALES, -1e-6), f"{WEIGHT}: scales must not be negative"),
        ("int8", filled(SCALES, 0.0), f"{WEIGHT}: a scale of zero belongs to a row of zeros"),
        ("int4", filled(SCALES, float("nan")), f"{SCALES}: has values that are not finite"),
        ("int4", filled(SCALES, 0.0), f"{WEIGHT}: scales must be greater than zero"),
        ("int4", filled(SCALES, -1.0), f"{WEIGHT}: scales must be greater than zero"),
        ("int4", filled(WEIGHT + "::offsets", float("-inf")), f"{WEIGHT}::offsets: has values that are not finite"),
        ("int8", filled(BIAS, float("nan")), BIAS),
    ],
)
def test_scales_that_are_none_are_rejected_and_the_model_stays(
    live: LiveCoordinator, judged: dict[str, tuple[Hand, str]], codec: str, spoil: Callable[[Tensors], None], said: str
) -> None:
    hand, run = judged[codec]
    assignment = hand.take(run, wait=20)
    blocks = live.operator.get(f"/runs/{run}")["blocks"]
    tensors = coded(random_delta(hand, assignment), codec)
    spoil(tensors)
    assert hand.send(assignment, saved(tensors, codec)).status_code == 202, "it has the form of one"
    view = settled(live, run)
    visit = next(a for a in live.operator.get(f"/runs/{run}/assignments") if a["id"] == assignment.assignment_id)
    assert visit["state"] == "rejected"
    assert said in visit["reason"]
    assert (view["state"], view["blocks"]) == ("paused", blocks), "its only agent would send the same again"
    live.operator.post(f"/runs/{run}/resume")
    live.operator.post(f"/agents/{hand.name}/release")  # so many in a row would shut it away


def test_a_row_of_zeros_may_have_a_scale_of_zero(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand], delta={"codec": "int8"})
    tensors = coded(random_delta(hand, assignment := hand.take(run, wait=20)), "int8")
    tensors[WEIGHT][0], tensors[SCALES][0] = 0, 0.0
    assert hand.send(assignment, saved(tensors, "int8")).status_code == 202
    assert settled(live, run)["rounds_done"] == 1


class Meddler(httpx.BaseTransport):
    """Hands requests on, and changes what the first claim that finds work is answered."""

    def __init__(self, change: Callable[[dict[str, Any]], None]) -> None:
        self._inner, self._change, self.done = httpx.HTTPTransport(verify=False), change, False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._inner.handle_request(request)
        if self.done or not request.url.path.endswith("/claim") or answer.status_code != 200:
            return answer
        self.done = True
        body = json.loads(answer.read())
        self._change(body)
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(json.dumps(body).encode()))


def unknown_codec(body: dict[str, Any]) -> None:
    body["manifest"]["blocks"][0]["codec"] = "int3"


def pruned_too_far(body: dict[str, Any]) -> None:
    body["manifest"]["blocks"][0]["codec"] = "pruned:95"


def unknown_delta(body: dict[str, Any]) -> None:
    body["delta_codec"] = "int2"


@pytest.mark.parametrize(
    ("change", "said"),
    [(unknown_codec, "unknown codec 'int3'"), (pruned_too_far, "unknown codec 'pruned:95'"), (unknown_delta, "delta_codec")],
)
def test_a_manifest_in_an_unknown_codec_is_given_back_and_the_agent_goes_on(
    live: LiveCoordinator, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, Any]], None], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(worker, "FAILURE_PAUSE_S", 0.0)
    monkeypatch.setattr(worker, "WAIT_S", 20.0)
    name, stand_in = fresh("old"), LightAgent(live, tmp_path / "other")
    client: Client = live.enrol(name)
    client._http._transport = Meddler(change)
    client._http._mounts = {}
    spec = run_file(model, "all", schedule={"agents": "first_come"}, delta={"codec": "int8"})
    run = str(live.create_run(spec | {"agents": [name, stand_in.name]}, start=True)["name"])
    (tmp_path / "old").mkdir()
    (tmp_path / "old/rows.jsonl").write_text('{"text": "alpha", "label": 0}\n')
    config = Config.model_validate({"coordinator": live.url, "data": {"path": "rows.jsonl", "runs": [run]}})
    old = worker.Worker(Home(tmp_path / "old"), config, client)
    old._trainer = LightTrainer()  # type: ignore[assignment]
    with caplog.at_level(logging.INFO, "fedagent"):
        old._one()
    assert any(said in record.getMessage() and record.levelname == "ERROR" for record in caplog.records), caplog.text
    visit = live.operator.get(f"/runs/{run}/assignments")[0]
    assert (visit["state"], visit["reason"], visit["attempt"]) == ("pending", "manifest_invalid", 1)
    assert "manifest_invalid" in events(live, run)
    again = stand_in.claim(run, 20)
    assert again is not None
    stand_in.visit(again)
    settled(live, run)
    old._one()
    assert settled(live, run)["state"] == "completed"
    assert versions(live, run)["layers.1"] == 1
