"""The page at /admin: live, behind the operator's key, and without a secret in it."""

from collections.abc import Callable

import httpx
import pytest

from fedcybgd.coordinator.dashboard.pages import COOKIE
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.records.keys import key_hash
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, start_run


def browser(live: LiveCoordinator) -> httpx.Client:
    return httpx.Client(base_url=live.url, verify=False, timeout=30)


def logged_in(live: LiveCoordinator) -> httpx.Client:
    client = browser(live)
    answer = client.post("/admin", data={"key": live.operator_key})
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin")
    return client


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
    answer = client.post("/admin", data={"key": key})
    assert answer.status_code == 401
    assert "not the operator" in answer.text
    assert COOKIE not in client.cookies
    assert client.get("/admin/live").status_code == 401


def test_an_agents_key_opens_nothing(live: LiveCoordinator, hand: Hand) -> None:
    assert browser(live).post("/admin", data={"key": hand.key}).status_code == 401
    assert hand.http.get(f"{live.url}/admin/live").status_code == 401


def test_the_live_part_shows_runs_blocks_and_agents(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    hand.renew(assignment, phase="training", step=3, steps=9, loss=0.25)
    client = logged_in(live)
    assert 'id="live"' in client.get("/admin").text
    text = client.get("/admin/live").text
    for shown in (run, hand.name, model, "layers.0", "head", "leased 3/9, loss 0.250", "round 0 of 2"):
        assert shown in text


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
    cookie = browser(live).post("/admin", data={"key": live.operator_key}).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "max-age=43200" in cookie


def test_a_cookie_that_was_tampered_with_opens_nothing(live: LiveCoordinator) -> None:
    value = logged_in(live).cookies[COOKIE]
    name, stamp, signature = value.split(".")
    for forged in (value[:-1], value + "x", f"admin.{stamp}.{signature}", f"{name}.{stamp[::-1]}.{signature}", "operator", ""):
        answer = browser(live).get("/admin/live", headers={"Cookie": f"{COOKIE}={forged}"})
        assert (answer.status_code, answer.text) == (401, "")
    assert browser(live).get("/admin/live", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 200


def test_a_cookie_grows_old(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    client = logged_in(live)
    monkeypatch.setattr("fedcybgd.coordinator.dashboard.pages.SESSION_S", -1)
    assert client.get("/admin/live").status_code == 401


def test_logging_out_ends_it(live: LiveCoordinator) -> None:
    client = logged_in(live)
    assert client.post("/admin/logout").status_code == 303
    assert COOKIE not in client.cookies
    assert client.get("/admin/live").status_code == 401


def test_a_new_operator_key_ends_all_sessions(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators()
    client = logged_in(live)
    assert client.get("/admin/live").status_code == 200
    assert "No run yet" in client.get("/admin/live").text
    with live.database.transaction() as session:
        operators.rotate_key(session, utcnow())
    assert client.get("/admin/live").status_code == 401
    assert browser(live).post("/admin", data={"key": live.operator_key}).status_code == 401
