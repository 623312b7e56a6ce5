"""Uploads of deltas: resumed where they were cut, bounded before and while they arrive, and taken exactly once."""

import http.client
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save

from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.services.path.trained import DeltaForm
from fedcybgd.coordinator.sweeper import discard_uploads
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, last_visit, refused, settled, shard_tensors, start_run, state_of, together, unchanged, versions


@contextmanager
def unchanged_blocks(live: LiveCoordinator, run: str) -> Iterator[None]:
    before = state_of(live, run)["blocks"]
    yield
    assert state_of(live, run)["blocks"] == before


pytestmark = pytest.mark.database_decides

MIB = 1 << 20


@pytest.fixture
def run(live: LiveCoordinator, model: str, hand: Hand) -> str:
    return start_run(live, model, [hand])


def path(assignment: LeasedAssignment, digest: str) -> str:
    return f"/assignments/{assignment.assignment_id}/upload/{digest}"


def part(live: LiveCoordinator, assignment: LeasedAssignment, digest: str) -> Path:
    """Where it arrives."""
    with live.database.reading() as session:
        owner = session.get_one(Assignment, assignment.assignment_id).agent_id
    return live.settings.uploads / f"{assignment.assignment_id}-{owner}-{digest}.part"


@pytest.mark.one_database
def test_an_upload_goes_on_in_the_middle(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    digest, middle = digest_of(data), len(data) // 2
    assert hand.offset(assignment, digest) == {"offset": 0, "complete": False}
    assert hand.put(assignment, data[:middle], digest=digest).json() == {"offset": middle, "complete": False}
    assert hand.offset(assignment, digest) == {"offset": middle, "complete": False}
    assert hand.put(assignment, data[middle:], offset=middle, digest=digest).json()["offset"] == len(data)
    assert hand.submit(assignment, digest).status_code == 202
    assert settled(live, run)["rounds_done"] == 1


@pytest.mark.one_database
@pytest.mark.parametrize("offset", [0, 99, 101, 10**30])
def test_bytes_that_do_not_follow_on_are_not_written(live: LiveCoordinator, hand: Hand, run: str, offset: int) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    digest = digest_of(data)
    hand.put(assignment, data[:100], digest=digest)
    with unchanged(live, run):
        error = refused(hand.put(assignment, data[100:], offset=offset, digest=digest), 409, "offset_mismatch")
    assert error.detail == {"offset": 100}
    assert part(live, assignment, digest).read_bytes() == data[:100]


@pytest.mark.one_database
@pytest.mark.parametrize("offset", [-1, "x"])
def test_an_offset_is_a_number_of_bytes(hand: Hand, run: str, offset: object) -> None:
    assignment = hand.take(run)
    answer = hand.http.put(path(assignment, digest_of(b"x")), params={"offset": offset}, content=b"x")  # type: ignore[dict-item]
    refused(answer, 422, "invalid_request")


@pytest.mark.one_database
def test_what_is_announced_as_too_large_is_refused_before_the_first_byte(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    digest = digest_of(b"large")
    connection = http.client.HTTPConnection(urlsplit(live.url).netloc, timeout=10)
    connection.putrequest("PUT", "/v1" + path(assignment, digest))
    connection.putheader("Authorization", hand.http.headers["Authorization"])
    connection.putheader("Content-Length", str(assignment.max_delta_bytes + 1))
    with unchanged(live, run):
        connection.endheaders()  # and not one byte of the body
        answer = connection.getresponse()
        assert answer.status == 413
        assert b'"delta_too_large"' in answer.read()
    connection.close()
    assert not part(live, assignment, digest).exists()


@pytest.mark.one_database
def test_what_becomes_too_large_as_it_arrives_is_cut_off_and_not_kept(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    assert MIB < assignment.max_delta_bytes < 2 * MIB
    digest = digest_of(b"large")

    hand.put(assignment, os.urandom(100_000), digest=digest)

    def chunks() -> Iterator[bytes]:  # without a length: chunked
        for _ in range(100):
            yield os.urandom(MIB // 64)
            time.sleep(0.001)

    with unchanged(live, run):
        answer = hand.http.put(path(assignment, digest), params={"offset": 100_000}, content=chunks())
        error = refused(answer, 413, "delta_too_large")
    assert error.detail == {"limit": assignment.max_delta_bytes}
    assert hand.offset(assignment, digest) == {"offset": 0, "complete": False}
    assert not part(live, assignment, digest).exists()


@pytest.mark.one_database
def test_a_part_that_would_grow_too_large_is_refused(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    digest = digest_of(b"large")
    hand.put(assignment, b"x" * 1000, digest=digest)
    rest = b"x" * (assignment.max_delta_bytes - 999)
    refused(hand.put(assignment, rest, offset=1000, digest=digest), 413, "delta_too_large")
    assert hand.put(assignment, rest[1:], offset=1000, digest=digest).status_code == 200, "one byte less is as much as there may be"


def test_a_full_disk_is_said_and_the_upload_goes_on_later(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    target = part(live, assignment, digest_of(data))
    target.parent.mkdir(exist_ok=True)
    target.symlink_to("/dev/full")  # the kernel's own full disk
    with unchanged(live, run):
        refused(hand.put(assignment, data), 507, "disk_full")
    target.unlink()
    assert hand.send(assignment, data).status_code == 202


def test_nothing_is_submitted_before_it_is_uploaded(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    with unchanged(live, run):
        refused(hand.submit(assignment, digest_of(data)), 409, "upload_incomplete")
    assert hand.send(assignment, data).status_code == 202


@pytest.mark.one_database
def test_an_upload_under_no_digest_or_for_nobody(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    for odd in ("x", "A" * 64, "0" * 63):
        refused(hand.http.put(path(assignment, odd), content=b"x"), 422, "invalid_request")
    refused(hand.http.put(f"/assignments/asg_0123456789abcdef/upload/{digest_of(b'x')}", content=b"x"), 404, "not_found")
    assert not list(live.settings.uploads.glob(f"{assignment.assignment_id}*"))


def test_a_repeat_gets_the_same_receipt_before_and_after_it_is_accepted(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    first = hand.send(assignment, data)
    assert first.status_code == 202
    assert hand.submit(assignment, digest_of(data)).content == first.content
    settled(live, run)
    assert last_visit(live, run)["block"] == "layers.1"
    with unchanged(live, run):
        repeat = hand.submit(assignment, digest_of(data))
        assert (repeat.status_code, repeat.content) == (202, first.content)
    assert versions(live, run)["layers.0"] == 1


def test_another_delta_for_the_same_attempt_is_refused(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    hand.deliver(assignment)
    settled(live, run)
    other = digest_of(b"another")
    with unchanged(live, run):
        refused(hand.submit(assignment, other), 409, "stale_attempt")
        refused(hand.submit(assignment, other, attempt=2), 409, "stale_attempt")
        refused(hand.put(assignment, b"another"), 409, "lease_lost")


@pytest.mark.parametrize("attempt", [2, 99, -1, 10**30])
def test_an_attempt_that_is_not_the_present_one_is_stale(live: LiveCoordinator, hand: Hand, run: str, attempt: int) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    hand.put(assignment, data)
    with unchanged(live, run):
        assert refused(hand.submit(assignment, digest_of(data), attempt=attempt), 409, "stale_attempt").detail == {"attempt": 1}
        refused(hand.renew(assignment, attempt=attempt), 409, "stale_attempt")


def test_a_delta_submitted_eight_times_at_once_is_applied_once(live: LiveCoordinator, hand: Hand, run: str) -> None:
    before = {b["name"]: b["digest"] for b in live.operator.get(f"/runs/{run}")["blocks"]}
    assignment = hand.take(run)
    tensors = hand.delta(assignment, 0.125)
    data = save(tensors)
    hand.put(assignment, data)
    answers = together(8, lambda _: hand.submit(assignment, digest_of(data)))
    assert [a.status_code for a in answers] == [202] * 8, [a.text for a in answers]
    assert len({a.content for a in answers}) == 1
    view = settled(live, run)
    assert (versions(live, run)["layers.0"], versions(live, run)["head"], view["rounds_done"]) == (1, 1, 1)
    assert view["bytes"]["up"] == len(data)
    after = {b["name"]: b["digest"] for b in view["blocks"]}
    base, trained = shard_tensors(live, before["layers.0"]), shard_tensors(live, after["layers.0"])
    assert all(torch.equal(trained[name], base[name] + tensors[name]) for name in trained)


def test_a_lease_has_one_upload_the_last_that_was_begun(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    payloads = [save(hand.delta(assignment, value)) for value in (0.1, 0.2, 0.3, 0.4)]
    for data in payloads:
        assert hand.put(assignment, data).status_code == 200
        assert len(list(live.settings.uploads.glob(f"{assignment.assignment_id}-*"))) == 1
    answers = together(4, lambda i: hand.submit(assignment, digest_of(payloads[i])))
    assert sorted(a.status_code for a in answers) == [202, 409, 409, 409]
    assert {a.json()["code"] for a in answers if a.status_code == 409} <= {"stale_attempt", "upload_incomplete"}
    settled(live, run)
    assert live.operator.get(f"/runs/{run}/assignments")[0]["delta_digest"] == digest_of(payloads[-1])
    assert versions(live, run)["layers.0"] == 1
    assert not list(live.settings.uploads.glob(f"{assignment.assignment_id}-*")), "nothing is left of it"


def test_the_same_upload_twice_at_once_is_still_whole(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    target = part(live, assignment, digest_of(data))
    answers = together(4, lambda _: hand.put(assignment, data))
    assert {a.status_code for a in answers} <= {200, 409}
    offset = hand.offset(assignment, digest_of(data))["offset"]
    assert offset <= len(data)
    assert target.read_bytes() == data[:offset]


@pytest.mark.one_database
def test_the_store_tells_nobody_what_it_has(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    """Neither blocks and files of the model, nor what another agent sent, nor what this one sent for another visit."""
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed"})
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    hand.send(assignment, data)
    assert settled(live, run)["rounds_done"] == 1
    next_one = other.take(run)
    known = [ref.digest for ref in (*next_one.manifest.blocks, *next_one.manifest.files)] + [digest_of(data)]
    assert all(live.store.has(digest) for digest in known)
    with unchanged(live, run):
        for digest in (*known, digest_of(b"nobody has this")):
            assert other.offset(next_one, digest) == {"offset": 0, "complete": False}
            refused(other.submit(next_one, digest), 409, "upload_incomplete")


def test_what_was_uploaded_under_a_lease_that_ended_goes_on_under_the_next(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    hand.put(assignment, data[:100], digest=digest_of(data))
    hand.give_back(assignment, "stopping")
    discard_uploads(live.database, live.app.state.uploads)
    again = hand.take(run)
    assert (again.assignment_id, again.attempt) == (assignment.assignment_id, 2)
    assert hand.offset(again, digest_of(data))["offset"] == 100
    hand.put(again, data[100:], offset=100, digest=digest_of(data))
    assert hand.submit(again, digest_of(data)).status_code == 202


def test_what_another_agent_uploaded_for_the_same_visit_is_not_mine(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"})
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    hand.put(assignment, data)
    hand.give_back(assignment, "data_invalid")
    mine = other.take(run)
    assert mine.assignment_id == assignment.assignment_id
    assert other.offset(mine, digest_of(data)) == {"offset": 0, "complete": False}
    refused(other.submit(mine, digest_of(data)), 409, "upload_incomplete")
    discard_uploads(live.database, live.app.state.uploads)
    assert not list(live.settings.uploads.glob(f"{assignment.assignment_id}-*")), "another has it now"


def test_uploads_of_a_revoked_agent_are_not_kept(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, "all", schedule={"agents": "first_come"})
    assignment = hand.take(run)
    hand.put(assignment, b"x" * 1000)
    target = part(live, assignment, digest_of(b"x" * 1000))
    discard_uploads(live.database, live.app.state.uploads)
    assert target.exists()
    live.operator.post(f"/agents/{hand.name}/revoke")
    discard_uploads(live.database, live.app.state.uploads)
    assert not target.exists()


def test_a_delta_that_was_accepted_before_is_refused_as_a_replay(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    """Whoever sends it: patches hand one agent's deltas to others."""
    run = start_run(live, model, [hand, other], schedule={"agents": "fixed", "blocks": ["layers.0"], "cycles": 2})
    data = save(hand.delta(first := hand.take(run)))
    hand.send(first, data)
    assert settled(live, run)["rounds_done"] == 1
    assert hand.submit(first, digest_of(data)).status_code == 202, "a repeat of the same attempt is no replay"
    second = hand.take(run)
    with unchanged_blocks(live, run):
        assert hand.send(second, data).status_code == 202
        settled(live, run)
    visits = live.operator.get(f"/runs/{run}/assignments")
    assert [(visit["state"], (visit["reason"] or "")[:6]) for visit in visits] == [
        ("accepted", ""),
        ("rejected", "replay"),
        ("pending", ""),
    ]
    other.deliver(other.take(run))
    assert settled(live, run)["state"] == "completed"


@pytest.mark.one_database
def test_a_header_is_not_parsed_that_is_larger_than_any_delta_needs(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    form = {name: tuple(t.shape) for name, t in hand.delta(assignment).items()}
    most = DeltaForm(form, "float32", assignment.max_delta_bytes).header_limit
    assert MIB < most < MIB + (1 << 14)
    for length, said in ((most + 1, "are enough"), (most, "header is no JSON")):
        data = length.to_bytes(8, "little") + b"[" * length
        assert said in refused(hand.send(assignment, data), 422, "delta_refused").message


@pytest.mark.one_database
def test_a_delta_in_a_million_tiny_chunks_is_not_unpacked(live: LiveCoordinator, hand: Hand, run: str) -> None:
    assignment = hand.take(run)
    one = struct.pack("<BI", 1, 1) + struct.pack("<BI", 0, 1)
    data = b"FEDPACK1" + b"".join(one + bytes([byte]) for byte in save(hand.delta(assignment)))
    assert "chunks" in refused(hand.send(assignment, data), 422, "delta_refused").message
