"""The page at /admin: live, behind an operator's key, and without a secret in it."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from fedcybgd.coordinator.dashboard.pages import COOKIE, FORM_COOKIE
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Login
from fedcybgd.coordinator.services.agents import logins, operators
from fedcybgd.coordinator.services.agents.logins import form_token
from fedcybgd.coordinator.services.records.keys import key_hash
from tests.support.browser import browser, logged_in, sent
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, refused, start_run


def test_without_the_key_there_is_only_a_form(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    client = browser(live)
    page = client.get("/admin")
    assert page.status_code == 200
    assert 'name="key"' in page.text
    assert client.get("/admin/live").status_code == 401
    for text in (page.text, client.get("/admin/live").text):
        assert run not in text
        assert hand.name not in text


@pytest.mark.parametrize("key", ["", "wrong", "fco_" + "x" * 43])
def test_a_wrong_key_opens_nothing(live: LiveCoordinator, key: str) -> None:
    client = browser(live)
    answer = sent(client, key=key)
    assert answer.status_code == 401
    assert "not the key of an operator" in answer.text
    assert 'name="then" value=""' in answer.text
    assert 'name="then" value="/admin/runs"' in sent(browser(live), key=key, then="/admin/runs").text
    assert COOKIE not in client.cookies
    assert client.get("/admin/live").status_code == 401


def test_an_agents_key_opens_nothing(live: LiveCoordinator, hand: Hand) -> None:
    assert sent(browser(live), key=hand.key).status_code == 401
    assert hand.http.get(f"{live.url}/admin/live").status_code == 401


def test_the_live_part_shows_runs_blocks_and_agents(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    hand.renew(assignment, phase="training", step=3, steps=9, loss=0.25)
    client = logged_in(live)
    assert 'id="live"' in client.get("/admin").text
    text = client.get("/admin/live").text
    assert "<html" not in text, "it is a part of the page"
    for shown in (run, model, "now layers.0, 1 leased", "0 of 2 rounds"):
        assert shown in text
    near = client.get(f"/admin/runs/{run}?part=live").text
    for shown in (hand.name, "layers.0", "head", "training 3/9, loss 0.250", "0 of 2 rounds"):
        assert shown in near


def test_the_page_holds_no_secret(live: LiveCoordinator, model: str, hand: Hand) -> None:
    start_run(live, model, [hand])
    client = logged_in(live)
    text = client.get("/admin").text + client.get("/admin/live").text
    for secret in (live.operator_key, hand.key):
        assert secret not in text
        assert key_hash(secret) not in text
        assert secret not in client.cookies[COOKIE]
        assert key_hash(secret) not in client.cookies[COOKIE]


def test_what_agents_write_is_shown_as_text(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    hand.give_back(hand.take(run), "other", "<script>alert(1)</script><img src=x onerror=alert(1)>")
    text = logged_in(live).get("/admin/live").text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    assert "<img" not in text


def test_the_cookie_is_for_this_site_and_no_script(live: LiveCoordinator) -> None:
    cookie = sent(browser(live), key=live.operator_key).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "max-age=43200" in cookie


def test_a_cookie_that_was_tampered_with_opens_nothing(live: LiveCoordinator) -> None:
    value = logged_in(live).cookies[COOKIE]
    for forged in (value[:-1], value + "x", value.swapcase(), key_hash(value), "owner", live.operator_key, ""):
        refused(browser(live).get("/admin/live", headers={"Cookie": f"{COOKIE}={forged}"}), 401, "unauthorized")
    assert browser(live).get("/admin/live", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 200


def test_a_cookie_grows_old(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "HOLDS", timedelta(seconds=1))
    client = logged_in(live)
    token = client.cookies[COOKIE]
    wait_for(lambda: browser(live).get("/admin/live", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401, limit=5)


def test_a_cookie_does_not_outlive_its_key(live: LiveCoordinator) -> None:
    made = live.operator.post("/operators", {"name": fresh("temp"), "role": "viewer", "expires_in_s": 60})
    answer = sent(browser(live), key=made["key"])
    most = int(re.search(r"max-age=([0-9]+)", answer.headers["set-cookie"].lower())[1])  # type: ignore[index]
    assert 30 < most <= 60
    with live.database.reading() as session:
        login = session.get_one(Login, key_hash(answer.cookies[COOKIE]))
        assert login.expires_at == datetime.fromisoformat(made["expires_at"])


def test_logging_out_ends_it(live: LiveCoordinator) -> None:
    client = logged_in(live)
    copied = {"Cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
    assert browser(live).get("/admin/live", headers=copied).status_code == 200
    assert sent(client, "/admin/logout").status_code == 303
    assert COOKIE not in client.cookies
    assert client.get("/admin/live").status_code == 401
    refused(browser(live).get("/admin/live", headers=copied), 401, "unauthorized")


def test_a_login_has_a_cookie_that_nobody_knew_before(live: LiveCoordinator) -> None:
    victim = browser(live)
    fixed = logged_in(live).cookies[COOKIE]
    victim.cookies.set(COOKIE, fixed, domain="127.0.0.1", path="/admin")
    victim.get("/admin")
    sent(browser(live), key=live.operator_key)
    form = victim.get("/admin", headers={"Cookie": ""})
    secret = form.cookies[FORM_COOKIE]
    headers = {"Cookie": f"{COOKIE}={fixed}; {FORM_COOKIE}={secret}"}
    answer = browser(live).post("/admin", data={"form": form_token(secret), "key": live.operator_key}, headers=headers)
    assert answer.status_code == 303
    assert answer.cookies[COOKIE] != fixed
    refused(browser(live).get("/admin/live", headers={"Cookie": f"{COOKIE}={fixed}"}), 401, "unauthorized")


@pytest.mark.parametrize("form", [None, "", "0" * 64, "of another"])
def test_what_another_site_sends_does_nothing(live: LiveCoordinator, form: str | None) -> None:
    elsewhere = browser(live)
    elsewhere.get("/admin")
    given = form_token(elsewhere.cookies[FORM_COOKIE]) if form == "of another" else form
    data = {} if given is None else {"form": given}
    client, fresh_one = logged_in(live), browser(live)
    fresh_one.get("/admin")
    answer = fresh_one.post("/admin", data={"key": live.operator_key, **data})
    assert answer.status_code == 403
    assert COOKIE not in answer.cookies
    refused(client.post("/admin/logout", data=data), 403, "form_foreign")
    assert client.get("/admin/live").status_code == 200, "and the operator is still logged in"


def test_a_login_is_of_one_operator_and_ends_with_his_key(live: LiveCoordinator) -> None:
    name = fresh("vera")
    key = live.operator.post("/operators", {"name": name, "role": "viewer"})["key"]
    hers, owners = logged_in(live, key), logged_in(live)
    assert f"{name} (viewer)" in hers.get("/admin").text
    new = live.operator.post(f"/operators/{name}/rotate", {})["key"]
    refused(hers.get("/admin/live"), 401, "unauthorized")
    again = logged_in(live, new)
    assert again.get("/admin/live").status_code == 200
    live.operator.post(f"/operators/{name}/revoke")
    refused(again.get("/admin/live"), 401, "unauthorized")
    assert "was revoked" in sent(browser(live), key=new).text
    assert owners.get("/admin/live").status_code == 200, "nobody else's"


def test_a_new_operator_key_ends_all_sessions(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators()
    client = logged_in(live)
    assert client.get("/admin/live").status_code == 200
    assert "No run yet" in client.get("/admin/live").text
    with live.database.transaction() as session:
        operators.recover(session, operators.FIRST, utcnow())
    assert client.get("/admin/live").status_code == 401
    assert sent(browser(live), key=live.operator_key).status_code == 401
