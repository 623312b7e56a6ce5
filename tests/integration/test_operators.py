"""Operators by name: their keys come, change, expire and go, at once and one by one."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from fedcybgd.client.client import Client
from fedcybgd.client.errors import Refused
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import HeldOut
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.visits import fresh, operator, refused, together, wire


def client_of(live: LiveCoordinator, key: str | None = None) -> Client:
    return Client(live.url, key or live.operator_key)


def status(live: LiveCoordinator, key: str) -> httpx.Response:
    return wire(live, key).get("/status")


def test_an_operator_is_added_used_rotated_and_revoked(live: LiveCoordinator) -> None:
    owner, name = client_of(live), fresh("ada")
    made = owner.operators.add(name, "operator")
    assert (made.name, made.role, made.expires_at) == (name, "operator", None)
    hers = client_of(live, made.key)
    assert hers.operators.me().last_used_at is not None
    assert status(live, made.key).status_code == 200
    new = hers.operators.rotate()
    refused(status(live, made.key), 401, "unauthorized")
    assert status(live, new.key).status_code == 200
    newer = owner.operators.rotate(name).key
    refused(status(live, new.key), 401, "unauthorized")
    assert owner.operators.revoke(name).revoked_at is not None
    refused(status(live, newer), 401, "operator_revoked")
    view = next(o for o in owner.operators.list() if o.name == name)
    assert view.revoked_at is not None
    assert view.rotated_at is not None
    with pytest.raises(Refused, match="was revoked"):
        owner.operators.rotate(name)


@pytest.mark.parametrize("call", ["add", "rotate"])
def test_a_key_ends_by_itself(live: LiveCoordinator, call: str) -> None:
    owner, name = client_of(live), fresh("temp")
    made = owner.operators.add(name, "viewer", expires_in_s=0.5 if call == "add" else 3600)
    made = owner.operators.rotate(name, expires_in_s=0.5) if call == "rotate" else made
    assert made.expires_at is not None
    assert status(live, made.key).status_code == 200
    time.sleep(0.6)
    refused(status(live, made.key), 401, "operator_key_expired")
    assert status(live, owner.operators.rotate(name).key).status_code == 200


@pytest.mark.parametrize("asked", [None, 3600.0, 10.0])
@pytest.mark.parametrize("role", ["viewer", "operator", "owner"])
def test_his_own_rotation_makes_no_key_outlive_the_one_that_was_given(live: LiveCoordinator, role: Any, asked: float | None) -> None:
    made = client_of(live).operators.add(fresh("contractor"), role, expires_in_s=60)
    assert made.expires_at is not None
    hers = client_of(live, client_of(live, made.key).operators.rotate(expires_in_s=asked).key)
    ends = hers.operators.me().expires_at
    assert ends is not None
    if role == "owner" and asked is not None:  # who may extend everybody's may his own, if he says so
        assert abs((ends - utcnow()).total_seconds() - asked) < 5
    elif asked == 10:
        assert ends < made.expires_at - timedelta(seconds=40)
    else:
        assert ends == made.expires_at
    later = client_of(live).operators.rotate(made.name, expires_in_s=7200).expires_at
    assert later is not None
    assert later > made.expires_at + timedelta(hours=1), "an owner may"


def test_a_key_that_has_just_become_void_makes_no_other(live: LiveCoordinator) -> None:
    made = client_of(live).operators.add(fresh("late"), "operator")
    client_of(live).operators.rotate(made.name)  # between the look at his key and his own rotation
    with live.database.transaction() as session, pytest.raises(Unauthorized):
        operators.rotate_own(session, made.key, None, None, utcnow())


def test_keys_end_by_the_setting_where_nothing_else_is_said(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators(operator_keys_hold_s=3600)
    owner = client_of(live)
    for made, holds in ((owner.operators.add("one", "viewer"), 3600), (owner.operators.add("two", "viewer", expires_in_s=60), 60)):
        assert made.expires_at is not None
        assert abs((made.expires_at - utcnow()).total_seconds() - holds) < 30
    assert next(o for o in owner.operators.list() if o.name == operators.FIRST).expires_at is None, "what was made on the machine holds"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "me", "role": "viewer"}, "name"), ({"name": "a b", "role": "viewer"}, "name"), ({"name": "x", "role": "root"}, "role"),
        ({"name": "x"}, "role"), ({"name": "x", "role": "viewer", "expires_in_s": 0}, "expires_in_s"),
        ({"name": "x", "role": "viewer", "key": "fco_mine"}, "key"),
    ],
)  # fmt: skip
def test_what_is_no_operator_is_refused(live: LiveCoordinator, body: dict[str, object], field: str) -> None:
    assert field in refused(operator(live).post("/operators", json=body), 422, "invalid_request").message


def test_a_name_is_one_operators_also_after_he_is_gone(live: LiveCoordinator) -> None:
    owner, name = client_of(live), fresh("bob")
    owner.operators.add(name, "viewer")
    owner.operators.revoke(name)
    refused(operator(live).post("/operators", json={"name": name, "role": "owner"}), 409, "operator_name_taken")
    refused(operator(live).post("/operators/nobody/revoke"), 404, "not_found")


def test_an_owner_whose_key_has_expired_is_none_that_could_undo_it(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators()
    client_of(live).operators.add("former", "owner")
    with live.database.transaction() as session:
        operators.by_name(session, "former").expires_at = utcnow()
    refused(operator(live).post(f"/operators/{operators.FIRST}/revoke"), 409, "last_owner")
    assert client_of(live).operators.revoke("former").revoked_at is not None


@pytest.mark.database_decides
def test_there_is_always_an_owner(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators()
    owner = client_of(live)
    refused(operator(live).post(f"/operators/{operators.FIRST}/revoke"), 409, "last_owner")
    others = [client_of(live, owner.operators.add(name, "owner").key) for name in ("ada", "bob", "eve")]
    names = [operators.FIRST, "ada", "bob", "eve"]
    # All four revoke another at the same time: whoever is left can still do everything.
    together(4, lambda i: [owner, *others][i].connection._http.post(f"/operators/{names[(i + 1) % 4]}/revoke"))
    with live.database.transaction() as session:
        left = [name for name in names if operators.by_name(session, name).revoked_at is None]
    assert left
    with live.database.transaction() as session:
        key = operators.recover(session, "ada", utcnow())
    assert client_of(live, key).operators.me().role == "owner"


@pytest.mark.database_decides
def test_one_name_asked_for_by_four_at_once_goes_to_one(live: LiveCoordinator) -> None:
    name = fresh("wanted")
    answers = together(4, lambda _: operator(live).post("/operators", json={"name": name, "role": "viewer"}))
    assert sorted(a.status_code for a in answers) == [201, 409, 409, 409]


@pytest.mark.parametrize(("call", "code"), [("revoke", "operator_revoked"), ("rotate", "unauthorized")])
def test_a_file_counts_only_if_the_key_that_began_it_is_good_at_its_end(
    live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch, call: str, code: str
) -> None:
    owner, name, data = client_of(live), fresh("slow"), fresh("row").encode()
    key, writer, begun = owner.operators.add(name, "operator").key, LocalBlobStore.writer, threading.Event()

    def begins(store: LocalBlobStore) -> object:
        begun.set()
        return writer(store)

    def body() -> Iterator[bytes]:
        yield data[:1]
        assert begun.wait(20)
        getattr(owner.operators, call)(name)
        yield data[1:]

    monkeypatch.setattr(LocalBlobStore, "writer", begins)
    digest = digest_of(data)
    refused(wire(live, key).put(f"/held-out/{digest}", params={"name": "rows.csv"}, content=body()), 401, code)
    with live.database.reading() as session:
        assert session.get(HeldOut, digest) is None
