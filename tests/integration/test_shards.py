"""Bytes that go to agents: only what the manifest of a lease names, in ranges, by digest, and written down."""

import pytest

from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, operator, refused, start_run, together, unchanged


def path(assignment: LeasedAssignment, digest: str) -> str:
    return f"/assignments/{assignment.assignment_id}/shards/{digest}"


def ledger(live: LiveCoordinator, hand: Hand) -> list[tuple[str, int, str]]:
    return sorted((e["block"], e["version"], e["codec"]) for e in live.operator.get("/exposure", agent=hand.name))


def sent(live: LiveCoordinator, run: str) -> int:
    amount: int = live.operator.get(f"/runs/{run}")["bytes"]["down"]
    return amount


@pytest.fixture
def run(live: LiveCoordinator, model: str, hand: Hand) -> str:
    return start_run(live, model, [hand])


def test_every_shard_and_file_of_the_manifest_arrives_whole(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    total = 0
    for ref in (*assignment.manifest.blocks, *assignment.manifest.files):
        answer = hand.http.get(path(assignment, ref.digest))
        assert answer.status_code == 200
        assert (digest_of(answer.content), len(answer.content)) == (ref.digest, ref.size)
        assert answer.headers["etag"] == f'"{ref.digest}"'
        assert answer.headers["accept-ranges"] == "bytes"
        total += ref.size
    wait_for(lambda: sent(live, run) == total)
    assert ledger(live, hand) == sorted((b.block, 0, "exact") for b in assignment.manifest.blocks)


def test_only_what_was_fetched_is_in_the_ledger_and_once(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    assert ledger(live, hand) == []
    for _ in range(2):
        hand.http.get(path(assignment, assignment.manifest.blocks[1].digest))
    assert ledger(live, hand) == [(assignment.manifest.blocks[1].block, 0, "exact")]
    hand.deliver(assignment)
    following = hand.take(run)
    hand.http.get(path(following, following.manifest.blocks[1].digest))
    assert (following.manifest.blocks[1].block, 1, "exact") in ledger(live, hand)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [("bytes=0-99", slice(0, 100)), ("bytes=100-", slice(100, None)), ("bytes=7-7", slice(7, 8)), ("bytes=-5", slice(-5, None))],
)
def test_a_range_is_what_was_asked_for_and_counted_as_such(live: LiveCoordinator, hand: Hand, run: str, wanted: str, part: slice) -> None:
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    whole = live.store.path(ref.digest).read_bytes()
    answer = hand.http.get(path(assignment, ref.digest), headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == whole[part]
    start = range(len(whole))[part][0]
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{len(whole)}"
    wait_for(lambda: sent(live, run) == len(answer.content))


def test_a_transfer_goes_on_where_it_was_cut(hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    with hand.http.stream("GET", path(assignment, ref.digest)) as answer:
        first = next(answer.iter_raw(1000))
    rest = hand.http.get(path(assignment, ref.digest), headers={"Range": f"bytes={len(first)}-"})
    assert digest_of(first + rest.content) == ref.digest


def test_a_range_outside_the_shard_is_416(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    for wanted in (f"bytes={ref.size}-", "bytes=99999999-"):
        answer = hand.http.get(path(assignment, ref.digest), headers={"Range": wanted})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{ref.size}"
    for garbled in ("bytes", "bytes=x-y"):
        assert hand.http.get(path(assignment, ref.digest), headers={"Range": garbled}).status_code in (200, 400)


def test_who_has_the_digest_already_gets_no_bytes(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    answer = hand.http.get(path(assignment, ref.digest), headers={"If-None-Match": f'"{ref.digest}"'})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", f'"{ref.digest}"')
    other = hand.http.get(path(assignment, ref.digest), headers={"If-None-Match": f'"{digest_of(b"other")}"'})
    assert (other.status_code, len(other.content)) == (200, ref.size)
    wait_for(lambda: sent(live, run) == ref.size)


def test_nothing_but_the_manifest_is_given_out(live: LiveCoordinator, model: str, hand: Hand, run: str, gpt2: object) -> None:
    assignment = hand.take(run)
    foreign = live.add_model(fresh("foreign"), gpt2)["blocks"][0]["digest"]  # type: ignore[arg-type]
    assert live.store.has(foreign)
    with unchanged(live, run):
        refused(hand.http.get(path(assignment, foreign)), 403, "not_in_manifest")
        refused(hand.http.get(path(assignment, digest_of(b"nothing"))), 403, "not_in_manifest")
        for odd in ("x", "0" * 63, "0" * 65, "A" * 64, "..%2f..%2fcoordinator.db"):
            answer = hand.http.get(path(assignment, odd))
            assert answer.status_code in (404, 422), answer.text
    assert ledger(live, hand) == []
    assert sent(live, run) == 0


def test_nothing_is_given_out_without_the_lease(live: LiveCoordinator, model: str, hand: Hand, other: Hand, run: str) -> None:
    assignment = hand.take(run)
    wanted = path(assignment, assignment.manifest.blocks[0].digest)
    refused(other.http.get(wanted), 409, "lease_lost")
    refused(operator(live).get(wanted), 401, "unauthorized")
    hand.give_back(assignment, "stopping")
    refused(hand.http.get(wanted), 409, "lease_lost")
    hand.deliver(hand.take(run))
    refused(hand.http.get(wanted), 409, "lease_lost")
    assert ledger(live, other) == []


def test_the_old_version_is_not_given_out_after_the_new_one(live: LiveCoordinator, hand: Hand, run: str) -> None:
    first = hand.take(run)
    old = next(b.digest for b in first.manifest.blocks if b.block == "layers.0")
    hand.deliver(first)
    second = hand.take(run)
    assert old not in {b.digest for b in second.manifest.blocks}
    refused(hand.http.get(path(second, old)), 403, "not_in_manifest")


def test_eight_fetches_at_once_are_one_exposure(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    ref = assignment.manifest.blocks[0]
    answers = together(8, lambda _: hand.http.get(path(assignment, ref.digest)))
    assert [(a.status_code, digest_of(a.content)) for a in answers] == [(200, ref.digest)] * 8
    assert ledger(live, hand) == [(ref.block, 0, "exact")]
    wait_for(lambda: sent(live, run) == 8 * ref.size)


def test_a_runs_small_files_are_for_its_agents(live: LiveCoordinator, hand: Hand, other: Hand, run: str) -> None:
    offer = next(o for o in hand.me().runs if o.name == run)
    assert {"config.json", "tokenizer.json"} <= {f.name for f in offer.files}
    for file in offer.files:
        assert digest_of(hand.http.get(f"/runs/{offer.run_id}/files/{file.name}").content) == file.digest
    for asker, name in ((other, "config.json"), (hand, "model.safetensors"), (hand, "layers.0"), (hand, "..%2f..%2fcoordinator.db")):
        refused(asker.http.get(f"/runs/{offer.run_id}/files/{name}"), 404, "not_found")
    refused(hand.http.get("/runs/nobody/files/config.json"), 404, "not_found")


def test_the_ledger_of_an_unknown_agent(live: LiveCoordinator) -> None:
    refused(operator(live).get("/exposure", params={"agent": "nobody"}), 404, "not_found")
    refused(operator(live).get("/exposure", params={"limit": 0}), 422, "invalid_request")
