"""The audit log: who did what, in the transaction that did it, and nothing of it can be changed unnoticed."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from fedcybgd.client.client import Client
from fedcybgd.coordinator import cli
from fedcybgd.coordinator.commands import audit as commands
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.domain.caller import Caller
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.services.records import audit
from fedcybgd.shared.contract.operators import FIRST_HASH, AuditBroken, AuditEntry, check_audit
from tests.support.browser import browser, logged_in, sent
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, operator, refused, together, wire


def log(live: LiveCoordinator) -> list[AuditEntry]:
    return list(Client(live.url, live.operator_key).audit())


def since(live: LiveCoordinator, before: int) -> list[tuple[str, str, str, str, str]]:
    return [(e.caller, e.name, e.act, e.subject, e.outcome) for e in log(live) if e.seq > before]


def test_acts_and_refusals_say_who_what_and_what_became_of_it(live: LiveCoordinator) -> None:
    live.app.state.refusals.take(utcnow(), at_once=True)  # what other tests were refused in this minute does not count here
    hand, called, name, before = Hand(live), Hand(live, "v1"), fresh("vera"), len(log(live))
    key = live.operator.post("/operators", {"name": name, "role": "viewer"})["key"]
    refused(wire(live, key).post("/runs/x/pause"), 403, "role_too_low")
    refused(operator(live).post("/runs/no-such/pause"), 404, "not_found")
    token = live.operator.post("/enrolment-tokens", {})["token_id"]
    live.operator._http.post(f"/enrolment-tokens/{token}/withdraw")
    assert hand.http.post("/agents/me/key").status_code == 200
    live.operator.post(f"/agents/{called.name}/revoke")
    wire(live).post("/agents", json={"token": "fct_wrong-token", "name": "somebody"})
    assert operator(live).get("/runs").status_code == 200
    data = b'{"text": "a"}\n'
    from fedcybgd.shared.contract.digests import digest_of

    assert operator(live).put(f"/held-out/{digest_of(data)}", params={"name": "rows.jsonl"}, content=data).status_code == 200
    sent(browser(live), key="fco_wrong")
    logged_in(live, key)
    assert since(live, before) == [
        ("operator", "owner", "POST /v1/operators", name, "done"),
        ("operator", name, "POST /v1/runs/x/pause", "", "role_too_low"),
        ("operator", "owner", "POST /v1/runs/{run}/pause", "no-such", "not_found"),
        ("operator", "owner", "POST /v1/enrolment-tokens", "", "done"),
        ("operator", "owner", "POST /v1/enrolment-tokens/{token_id}/withdraw", token, "done"),
        ("agent", hand.name, "POST /v1/agents/me/key", "", "done"),
        ("operator", "owner", "POST /v1/agents/{name}/revoke", "v1", "done"),
        ("nobody", "", "POST /v1/agents", "somebody", "token_unknown"),
        ("operator", "owner", "PUT /v1/held-out/{digest}", f"{digest_of(data)} rows.jsonl", "done"),
        ("nobody", "", "POST /admin", "", "unauthorized"),
        ("operator", name, "POST /admin", "", "done"),
    ]
    assert {e.address for e in log(live)} <= {"127.0.0.1", ""}
    assert not any(secret in str(log(live)) for secret in (key, live.operator_key, "fct_wrong-token"))


@pytest.mark.database_decides
def test_many_at_once_make_one_chain(live: LiveCoordinator) -> None:
    before, name = len(log(live)), fresh("many")
    together(12, lambda i: operator(live).post("/operators", json={"name": f"{name}-{i % 6}", "role": "viewer"}))
    entries = log(live)
    assert len(entries) == before + 12
    assert check_audit(entries) == (len(entries), entries[-1].hash)
    with live.database.reading() as session:
        assert audit.check(session) == (len(entries), entries[-1].hash)


CHANGES = {
    "another name": "UPDATE audit SET name = 'mallory' WHERE seq = 2",
    "another time": "UPDATE audit SET at = '2020-01-01 00:00:00' WHERE seq = 2",
    "taken out": "DELETE FROM audit WHERE seq = 2",
    "the first one gone": "DELETE FROM audit WHERE seq = 1",
    "another hash": "UPDATE audit SET hash = previous WHERE seq = 3",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_found(
    coordinators: Callable[..., LiveCoordinator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    live = coordinators()
    monkeypatch.setattr(commands.terminal, "_width", 200)  # COLUMNS is read when a terminal is made, and another test may have made it
    for number in range(3):
        live.operator.post("/operators", {"name": f"o{number}", "role": "viewer"})
    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key}

    def command(*words: str) -> Any:
        return CliRunner().invoke(cli.app, ["audit", *words], env=environment)

    file = tmp_path / "audit.jsonl"
    assert "3 entries" in command("export", str(file)).output
    assert "each as it was written" in command("verify").output
    assert "each as it was written" in command("verify", str(file)).output
    assert "POST /v1/operators" in command("list").output
    with live.database.transaction() as session:
        session.execute(text(CHANGES[change]))
    assert isinstance(command("verify").exception, AuditBroken)
    with live.database.reading() as session, pytest.raises(AuditBroken):
        audit.check(session)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | {"subject": "x"}), lines[2]]))
    assert isinstance(command("verify", str(file)).exception, AuditBroken)


def test_an_entry_that_was_made_over_with_a_hash_of_its_own_is_found() -> None:
    fields = {
        "at": utcnow(),
        "caller": "operator",
        "name": "ada",
        "role": "owner",
        "address": "",
        "act": "x",
        "subject": "",
        "outcome": "done",
    }
    chain: list[AuditEntry] = []
    for seq in range(1, 4):
        made = AuditEntry.model_validate(fields | {"seq": seq, "previous": chain[-1].hash if chain else FIRST_HASH, "hash": ""})
        chain.append(made.model_copy(update={"hash": made.own_hash()}))
    assert check_audit(chain) == (3, chain[-1].hash)
    for place in (0, 1):
        other = chain[place].model_copy(update={"name": "mallory"})
        changed = [*chain]
        changed[place] = other.model_copy(update={"hash": other.own_hash()})
        with pytest.raises(AuditBroken):
            check_audit(changed)


def test_an_act_that_is_undone_leaves_no_entry(live: LiveCoordinator) -> None:
    before = len(log(live))

    def undone() -> None:
        with live.database.transaction() as session:
            audit.write(session, utcnow(), audit.MACHINE, "an act")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        undone()
    assert len(log(live)) == before


def bounded(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch, **bounds: Any) -> None:
    live.app.state.refusals.take(utcnow(), at_once=True)
    for name, value in bounds.items():
        monkeypatch.setattr(live.app.state.refusals, f"_{name}", value)


def test_whoever_is_refused_for_ever_does_not_fill_it(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(live, monkeypatch, most=3)
    before = len(log(live))
    for _ in range(9):
        sent(browser(live), key="fco_wrong")
    assert len(log(live)) == before + 3
    monkeypatch.setattr(live.app.state.refusals, "_within", timedelta(0))
    wait_for(lambda: len(log(live)) == before + 4)
    assert since(live, before + 3) == [("nobody", "", "refused", "", "6 more are not listed")]
    assert log(live)[-1].address == "127.0.0.1"


@pytest.mark.parametrize("spent", ["most", "of_strangers"])
def test_what_strangers_are_refused_hides_nobody_who_is_known(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch, spent: str) -> None:
    bounded(live, monkeypatch, **{spent: 2})
    names = [fresh("vera"), fresh("vera")]
    keys = [live.operator.post("/operators", {"name": name, "role": "viewer"})["key"] for name in names]
    before = len(log(live))
    for number in range(9):
        wire(live).post(
            "/agents", json={"token": "fct_wrong-token", "name": "somebody"}, headers={"X-Forwarded-For": f"192.0.2.{number % 2}"}
        )
    assert wire(live, keys[0]).post("/runs/x/pause").status_code == 403
    for _ in range(9 if spent == "most" else 0):
        wire(live, keys[0]).post("/runs/x/pause")
    assert wire(live, keys[1]).post("/runs/x/pause").status_code == 403
    listed = [name for _, name, *_ in since(live, before)]
    assert [listed.count(name) for name in ("", *names)] == ([4, 2, 1] if spent == "most" else [2, 1, 1])
    assert wire(live, live.operator_key).get("/status").status_code == 200


def test_what_is_not_listed_is_counted_for_whom_it_is() -> None:
    now, bound = utcnow(), audit.Bound(most=2, of_strangers=5)
    vera = Caller("operator", "vera", Role.VIEWER, "192.0.2.1")
    strangers = [Caller("nobody", address=f"192.0.2.{n}") for n in range(9)]
    for one in (vera, strangers[0], strangers[1]):
        assert [bound.outcome(one, "no", now) for _ in range(4)] == ["no", "no", None, None]
    assert [bound.outcome(one, "no", now) for one in strangers[2:]] == ["no", *[None] * 6]
    assert len(bound._whiles) == 5, "nothing is kept of each stranger who is not listed"
    assert bound.take(now + timedelta(seconds=60)) == []
    later = now + timedelta(seconds=61)
    assert bound.outcome(vera, "no", later) == "no; 2 more are not listed"
    left = bound.take(later)
    assert [(one.caller.address, one.number) for one in left] == [("", 6), ("192.0.2.0", 2), ("192.0.2.1", 2)]
    bound.give_back(left, later)
    assert [one.number for one in bound.take(later, at_once=True)] == [6, 2, 2]
    assert bound.take(later, at_once=True) == []
    assert [bound.outcome(vera, "no", at) for at in (later, later, later, now)] == ["no", "no", None, "no; 1 more are not listed"]


def test_what_is_not_listed_is_said_before_a_stop(coordinators: Callable[..., LiveCoordinator], monkeypatch: pytest.MonkeyPatch) -> None:
    live = coordinators()
    bounded(live, monkeypatch, most=1)
    for _ in range(3):
        wire(live).post("/agents", json={"token": "fct_wrong-token", "name": "somebody"})
    live.stop()
    assert log(coordinators())[-1].outcome == "2 more are not listed"
