"""Enrolment and keys: who gets in, who does not, and what is kept of it."""

import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import MetaData, select

from fedcybgd.agent import credentials, enrolment
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import Unreachable
from fedcybgd.agent.keys import secret_of
from fedcybgd.agent.settings import Home
from fedcybgd.coordinator.services.records.keys import key_hash
from fedcybgd.shared.contract.agents import EnrolAnswer, EnrolRequest
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, operator, refused, together, wire


def token(live: LiveCoordinator, **body: float) -> str:
    made: str = live.operator.post("/enrolment-tokens", body)["token"]
    return made


def enrol(live: LiveCoordinator, token: str, name: str, **more: object) -> httpx.Response:
    return wire(live).post("/agents", json={"token": token, "name": name, **more})


def names(live: LiveCoordinator) -> set[str]:
    return {a["name"] for a in live.operator.every("/agents")}


def test_a_wrong_token_makes_no_agent(live: LiveCoordinator) -> None:
    name = fresh("nobody")
    refused(enrol(live, "fct_wrong-token", name), 401, "token_unknown")
    refused(enrol(live, token(live)[:-1], name), 401, "token_unknown")
    assert name not in names(live)


def test_an_expired_token_makes_no_agent(live: LiveCoordinator) -> None:
    name = fresh("late")
    late = token(live, expires_in_s=0.01)
    time.sleep(0.05)
    assert "expired at" in refused(enrol(live, late, name), 401, "token_expired").message
    assert name not in names(live)


@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_a_token_expires_some_time_and_in_the_future(live: LiveCoordinator, seconds: float) -> None:
    refused(operator(live).post("/enrolment-tokens", json={"expires_in_s": seconds}), 422, "invalid_request")


def test_a_token_makes_one_agent_only(live: LiveCoordinator) -> None:
    once, first, second = token(live), fresh("first"), fresh("second")
    assert enrol(live, once, first).status_code == 201
    refused(enrol(live, once, second), 409, "token_used")
    assert first in names(live)
    assert second not in names(live)


@pytest.mark.database_decides
def test_a_token_used_eight_times_at_once_makes_one_agent(live: LiveCoordinator) -> None:
    once, name = token(live), fresh("crowd")
    answers = together(8, lambda i: enrol(live, once, f"{name}-{i}"))
    assert sorted(a.status_code for a in answers) == [201] + [409] * 7
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"token_used"}
    assert len([n for n in names(live) if n.startswith(name)]) == 1


def test_a_taken_name_is_refused_and_spends_no_token(live: LiveCoordinator, hand: Hand) -> None:
    good = token(live)
    for taken in (hand.name, live.operator.get(f"/agents/{hand.name}")["id"]):
        refused(enrol(live, good, taken), 409, "agent_name_taken")
    assert enrol(live, good, fresh("another")).status_code == 201


@pytest.mark.database_decides
def test_one_name_asked_for_by_eight_at_once_goes_to_one(live: LiveCoordinator) -> None:
    tokens, name = [token(live) for _ in range(8)], fresh("wanted")
    answers = together(8, lambda i: enrol(live, tokens[i], name))
    assert sorted(a.status_code for a in answers) == [201] + [409] * 7, [a.text for a in answers]
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"agent_name_taken"}


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "ü", "x" * 101, "x\n", "x\0"])
@pytest.mark.database_decides
def test_a_name_that_is_no_name_is_refused(live: LiveCoordinator, name: str) -> None:
    good = token(live)
    assert "name" in refused(enrol(live, good, name), 422, "invalid_request").message
    assert name not in names(live)
    assert enrol(live, good, fresh("good")).status_code == 201


@pytest.mark.parametrize(
    "more", [{"device": {"memory_bytes": 10**400}}, {"device": {"cores": 0}}, {"version": "1" * 41}, {"weights": "mine"}]
)
def test_what_an_agent_says_of_itself_is_checked(live: LiveCoordinator, more: dict[str, object]) -> None:
    name = fresh("odd")
    refused(enrol(live, token(live), name, **more), 422, "invalid_request")
    assert name not in names(live)


def test_keys_and_tokens_are_kept_as_hashes_only(live: LiveCoordinator) -> None:
    secret = token(live)
    key = enrol(live, secret, fresh("hashed")).json()["key"]
    unused = token(live)
    metadata = MetaData()
    metadata.reflect(live.database.engine)
    with live.database.reading() as session:
        dump = "\n".join(str(row) for table in metadata.sorted_tables for row in session.execute(select(table)))
    for clear in (secret, unused, key, live.operator_key):
        assert clear not in dump
        assert key_hash(clear) in dump
    stored = [p for p in live.settings.home.rglob("*") if p.is_file() and p.name.startswith("coordinator.db")]
    assert not any(clear.encode() in path.read_bytes() for path in stored for clear in (secret, unused, key, live.operator_key))


@pytest.mark.database_decides
def test_a_revoked_agent_is_shut_out_at_once(live: LiveCoordinator, hand: Hand) -> None:
    assert hand.me().state == "active"
    assert operator(live).post(f"/agents/{hand.name}/revoke").json()["state"] == "revoked"
    refused(hand.http.get("/agents/me"), 403, "agent_revoked")
    refused(hand.http.post("/assignments/claim", json={}), 403, "agent_revoked")
    refused(hand.http.post("/agents/me/key"), 403, "agent_revoked")
    refused(operator(live).post(f"/agents/{hand.name}/revoke"), 409, "invalid_transition")
    refused(operator(live).post("/agents/nobody-of-that-name/revoke"), 404, "not_found")
    refused(enrol(live, token(live), hand.name), 409, "agent_name_taken")


def test_a_rotated_key_replaces_the_old_one(live: LiveCoordinator, hand: Hand) -> None:
    before = hand.me()
    key = hand.http.post("/agents/me/key").json()["key"]
    refused(hand.http.get("/agents/me"), 401, "unauthorized")
    after = wire(live, key).get("/agents/me").json()
    assert (after["agent_id"], after["name"]) == (before.agent_id, before.name)


AGENT_ROUTES = ("/v1/assignments", "/v1/agents/me", "/v1/runs/{run}/files/")
OPEN_ROUTES = {("get", "/v1/health"), ("get", "/v1/health/ready"), ("get", "/v1/key"), ("post", "/v1/agents")}


def routes(live: LiveCoordinator) -> list[tuple[str, str]]:
    return [(method, path) for path, item in live.app.openapi()["paths"].items() for method in item if (method, path) not in OPEN_ROUTES]


def filled(path: str) -> str:
    return path.replace("{digest}", "0" * 64).replace("{", "").replace("}", "")


def test_every_route_wants_the_right_kind_of_key(live: LiveCoordinator, hand: Hand) -> None:
    anonymous = wire(live)
    assert len(routes(live)) > 20
    for method, path in routes(live):
        wrong = operator(live) if path.startswith(AGENT_ROUTES) else hand.http
        for caller in (wrong, anonymous):
            refused(caller.request(method, live.url + filled(path)), 401, "unauthorized")


@pytest.mark.parametrize("header", ["", "Bearer", "Basic eDp5", "bearer x", "Bearer fca_" + "x" * 43, "Bearer \xff", "garbage"])
def test_a_missing_or_garbled_key_opens_nothing(live: LiveCoordinator, header: str) -> None:
    for path in ("/agents/me", "/runs", "/status"):
        answer = wire(live).get(path, headers=[(b"Authorization", header.encode("latin-1"))])
        refused(answer, 401, "unauthorized")


def test_a_key_is_no_key_with_something_added(live: LiveCoordinator) -> None:
    for key in (live.operator_key + "x", live.operator_key[:-1], live.operator_key.upper(), key_hash(live.operator_key)):
        refused(wire(live, key).get("/runs"), 401, "unauthorized")


def test_enrolment_says_what_it_got(live: LiveCoordinator) -> None:
    name = fresh("plain")
    request = EnrolRequest(token=token(live), name=name, version="1.2.3")
    answer = wire(live).post("/agents", json=request.model_dump())
    assert answer.json()["name"] == name
    view = next(a for a in live.operator.every("/agents") if a["name"] == name)
    assert (view["state"], view["version"], view["last_seen_at"]) == ("enrolled", "1.2.3", None)


# ---- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_listed_without_their_secrets_and_withdrawn(live: LiveCoordinator) -> None:
    made = live.operator.post("/enrolment-tokens", {"uses": 2})
    secret, which = made["token"], made["token_id"]
    assert enrol(live, secret, fresh("first")).status_code == 201
    listed = next(t for t in live.operator.every("/enrolment-tokens") if t["id"] == which)
    assert (listed["used"], listed["uses"], listed["withdrawn_at"], listed["agent"]) == (1, 2, None, None)
    assert secret not in str(listed)
    assert key_hash(secret) not in str(listed)
    assert operator(live).post(f"/enrolment-tokens/{which}/withdraw").status_code == 204
    refused(enrol(live, secret, fresh("late")), 401, "token_withdrawn")
    refused(operator(live).post("/enrolment-tokens/tok_0123456789abcdef/withdraw"), 404, "not_found")


@pytest.mark.database_decides
def test_a_token_of_three_makes_three_agents(live: LiveCoordinator) -> None:
    three, name = live.operator.post("/enrolment-tokens", {"uses": 3})["token"], fresh("several")
    answers = together(8, lambda i: enrol(live, three, f"{name}-{i}"))
    assert sorted(a.status_code for a in answers) == [201] * 3 + [409] * 5
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"token_used"}


@pytest.mark.parametrize("uses", [0, -1, 1001, 1.5])
def test_a_token_has_a_number_of_uses(live: LiveCoordinator, uses: float) -> None:
    refused(operator(live).post("/enrolment-tokens", json={"uses": uses}), 422, "invalid_request")


@pytest.mark.parametrize("heard", [False, True])
def test_an_enrolment_whose_answer_was_lost_is_said_again(
    live: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    home, once, name = Home(tmp_path), token(live), fresh("cut")
    whole = Client.enrol

    def lost(client: Client, request: EnrolRequest) -> EnrolAnswer:
        assert home.config.exists(), "who is killed after it has a key is not asked to enrol again"
        assert home.policy.exists()
        if heard:
            whole(client, request)
        raise Unreachable("the line was cut")

    with monkeypatch.context() as cut:
        cut.setattr(Client, "enrol", lost)
        for _ in range(2):
            with pytest.raises(Unreachable):
                enrolment.enrol(home, live.url, once, name, "")
    assert home.enrolling.stat().st_mode & 0o077 == 0
    answer = enrolment.enrol(home, live.url, once, name, "")
    assert Client(live.url, secret_of(credentials.load(home))).me().agent_id == answer.agent_id
    assert not home.enrolling.exists()
    said = {"public_key": answer.public_key}
    acts = len(live.operator.every("/audit"))
    again = enrol(live, once, name, **said)
    assert (again.status_code, again.json()["agent_id"], again.json()["key"]) == (200, answer.agent_id, None)
    assert len(live.operator.every("/audit")) == acts, "it may be said as often as one likes"
    refused(enrol(live, once, fresh("other"), **said), 409, "token_used")
    refused(enrol(live, once, name), 409, "token_used")
    refused(enrol(live, token(live), fresh("other"), **said), 409, "public_key_taken")
    refused(Hand(live).http.post("/agents/me/key", json=said), 409, "public_key_taken")
    assert [a["name"] for a in live.operator.every("/agents")].count(name) == 1
