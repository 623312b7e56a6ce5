"""Agents sign their requests: nobody who has read one, or the whole database, can be one of them."""

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from fedcybgd.agent import credentials, keys
from fedcybgd.agent.client import Client
from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.errors import CoordinatorSaid, KeyRefused, Unreachable
from fedcybgd.agent.settings import Home
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Agent, Assignment, SpentSignature
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.replays import Replays
from fedcybgd.coordinator.services.agents import identity
from fedcybgd.coordinator.services.records import spent
from fedcybgd.shared.contract.agents import ClaimRequest, EnrolRequest
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.signatures import AHEAD_S, SIGNATURE, SIGNATURE_INPUT, TIME, WINDOW_S
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from fedcybgd.shared.contract.words import API
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, operator, refused, start_run, wire


def enrolled(live: LiveCoordinator, name: str | None = None) -> tuple[str, Signer, str]:
    """Name, signer and private key of an agent that signs."""
    name, private = name or fresh("signer"), new_private_key()
    signer = Signer(private)
    signer._ahead = 1.5  # what is signed in the second in which a coordinator began is refused once
    token = live.operator.post("/enrolment-tokens", {})["token"]
    answer = Client(live.url).enrol(EnrolRequest(token=token, name=name, public_key=signer.public_key))
    assert answer.key is None, "there is no secret beside it"
    return name, signer, private


class Recorder(httpx.Auth):
    """Signs as an agent does, and keeps what was sent, as somebody on the way would."""

    def __init__(self, signer: Signer) -> None:
        self._signer, self.sent = signer, list[httpx.Request]()

    def auth_flow(self, request: httpx.Request) -> Any:
        flow = self._signer.auth_flow(request)
        answer = None
        try:
            while True:
                request = flow.send(answer) if answer is not None else next(flow)
                self.sent.append(request)
                answer = yield request
        except StopIteration:
            return


def signed(live: LiveCoordinator, signer: Signer) -> tuple[httpx.Client, Recorder]:
    recorder = Recorder(signer)
    return httpx.Client(base_url=live.url + API, headers={VERSION: str(SPOKEN)}, auth=recorder, verify=False, timeout=30), recorder


def again(live: LiveCoordinator, request: httpx.Request, **changed: Any) -> httpx.Response:
    """The same request once more, or with something changed."""
    headers = {n: v for n, v in request.headers.items() if n not in ("host", "content-length", "transfer-encoding", "connection")}
    headers |= {name.lower(): value for name, value in changed.pop("headers", {}).items()}
    content = changed.get("content", request.read())
    with httpx.Client(verify=False, timeout=30) as thief:
        return thief.request(changed.get("method", request.method), changed.get("url", request.url), headers=headers, content=content)


def test_a_visit_is_made_with_signatures_alone(live: LiveCoordinator, model: str) -> None:
    hand = Hand(live)
    signer = Signer(new_private_key())
    assert hand.http.post("/agents/me/key", json={"public_key": signer.public_key}).json() == {"key": None}
    refused(hand.http.get("/agents/me"), 401, "unauthorized")
    hand.http, recorder = signed(live, signer)
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    hand.renew(assignment, phase="training", step=1, steps=2)
    from tests.support.visits import save

    data = save(hand.delta(assignment))
    assert hand.send(assignment, data).status_code == 202
    assert all("authorization" not in request.headers for request in recorder.sent)
    assert {r.method for r in recorder.sent} == {"GET", "POST", "PUT"}


def test_a_request_counts_once(live: LiveCoordinator) -> None:
    _, signer, _ = enrolled(live)
    http, recorder = signed(live, signer)
    assert http.get("/agents/me").status_code == 200
    assert http.post("/assignments/claim", params={"wait": 0}, json={}).status_code == 204
    for request in recorder.sent[-2:]:
        refused(again(live, request), 401, "signature_repeated")


@contextmanager
def elsewhere(live: LiveCoordinator) -> Iterator[None]:
    """Another coordinator on the same database is asked meanwhile, which began before and has heard nothing yet."""
    another, heard = Replays(), live.app.state.replays
    another._began, another._zero = heard._began, heard._zero
    live.app.state.replays = another
    yield
    live.app.state.replays = heard


def test_a_request_that_has_changed_something_changes_nothing_at_another_coordinator(live: LiveCoordinator, model: str) -> None:
    hand = Hand(live)
    signer = Signer(new_private_key())
    signer._ahead = 1.5
    hand.http.post("/agents/me/key", json={"public_key": signer.public_key})
    hand.http, recorder = signed(live, signer)
    run = start_run(live, model, [hand])
    signer._ahead = 0.5
    assert hand.http.post("/assignments/claim", params={"wait": 0}, json={"runs": ["none"]}).status_code == 204
    signer._ahead = 1.5
    assert hand.http.put("/agents/me/readiness", json={"runs": []}).status_code == 204
    assignment = hand.take(run)
    assert hand.renew(assignment).status_code == 200
    in_vain, *rest = recorder.sent
    with elsewhere(live):
        refused(again(live, in_vain), 401, "signature_stale")
        for request in (r for r in rest if r.method == "PUT" or "/renew" in r.url.path):
            refused(again(live, request), 401, "signature_repeated")
        assert again(live, rest[-2]).json()["code"] in ("signature_repeated", "signature_stale"), "the claim that got it"
    with live.database.reading() as session:
        assert session.get_one(Assignment, assignment.assignment_id).attempt == assignment.attempt
    with live.database.transaction() as session:
        spent.forget(session, utcnow() + 2 * spent.KEPT)
        assert session.scalar(select(func.count()).select_from(SpentSignature)) == 0


def test_what_was_written_by_a_wrong_clock_stops_nobody_once_it_is_right(live: LiveCoordinator) -> None:
    hand, signer = Hand(live), Signer(new_private_key())
    hand.http.post("/agents/me/key", json={"public_key": signer.public_key})
    http, _ = signed(live, signer)
    soon = utcnow() + timedelta(hours=1)
    with live.database.transaction() as session:
        session.add(SpentSignature(key_id=signer.key_id, nonce="n" * 22, created=int(soon.timestamp()), at=soon))
    refused(http.put("/agents/me/readiness", json={"runs": []}), 401, "signature_stale")
    with live.database.transaction() as session:
        spent.forget(session, utcnow())
    assert http.put("/agents/me/readiness", json={"runs": []}).status_code == 204


def test_a_claim_that_waits_in_vain_is_not_written_down(live: LiveCoordinator) -> None:
    _, signer, _ = enrolled(live)
    http, _ = signed(live, signer)
    http.get("/agents/me")

    def number() -> int:
        with live.database.reading() as session:
            return session.scalar(select(func.count()).select_from(SpentSignature).where(SpentSignature.key_id == signer.key_id)) or 0

    before = number()
    assert before == 1
    assert http.post("/assignments/claim", params={"wait": 0}, json={}).status_code == 204  # its limits are looked at, once
    written = number()
    assert http.post("/assignments/claim", params={"wait": 0}, json={}).status_code == 204
    assert number() == written


@pytest.mark.parametrize(
    "changed",
    [
        {"content": b'{"runs": ["*"]}'}, {"content": b""}, {"method": "PUT"}, {"query": b"wait=1"}, {"path": "/v1/agents/me"},
        {"headers": {"content-digest": "sha-256=:" + base64.b64encode(bytes(32)).decode() + ":"}},
        {"headers": {SIGNATURE: "sig1=:" + base64.b64encode(bytes(64)).decode() + ":"}}, {"headers": {SIGNATURE: "garbage"}},
        {"input": ("created=1", "created=2")}, {"input": ('nonce="', 'nonce="A')}, {"input": ('alg="ed25519"', 'alg="none"')},
        {"input": (' "content-digest")', ")")}, {"input": ("sig1=", "sig2=")},
    ],
)  # fmt: skip
def test_a_request_that_was_changed_is_none(live: LiveCoordinator, changed: dict[str, Any]) -> None:
    _, signer, _ = enrolled(live)
    request = httpx.Request("POST", f"{live.url}/v1/assignments/claim?wait=0", json={"runs": []})
    request.read()
    signer._sign(request)
    if "query" in changed:
        changed = {"url": request.url.copy_with(query=changed["query"])}
    elif "path" in changed:
        changed = {"url": request.url.copy_with(path=changed["path"])}
    elif "input" in changed:
        old, new = changed["input"]
        assert old in request.headers[SIGNATURE_INPUT]
        changed = {"headers": {SIGNATURE_INPUT: request.headers[SIGNATURE_INPUT].replace(old, new)}}
    answer = again(live, request, **changed)
    assert answer.status_code in (401, 404, 405), answer.text
    assert answer.status_code != 401 or answer.json()["code"] == "signature_wrong"
    assert again(live, request).status_code == 204, "as it was it is good"


def test_a_signature_is_for_now(live: LiveCoordinator) -> None:
    _, signer, _ = enrolled(live)
    for seconds, code in ((-WINDOW_S - 5, 401), (AHEAD_S + 5, 401), (-WINDOW_S + 20, 200), (AHEAD_S - 2, 200)):
        signer._ahead = seconds
        request = httpx.Request("GET", f"{live.url}/v1/agents/me")
        signer._sign(request)
        answer = again(live, request)
        began = live.app.state.replays._began
        if code == 200 and time.time() + seconds <= began:
            code = 401  # signed before this coordinator began
        assert answer.status_code == code, (seconds, answer.text)
        if code == 401:
            refused(answer, 401, "signature_stale")
            assert abs(int(answer.headers[TIME]) - time.time()) < 5


@pytest.mark.parametrize("hours", [-24 * 365, -1, 1, 24 * 365])
def test_an_agent_whose_clock_is_wrong_still_works(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    _, signer, _ = enrolled(live)
    real = time.time
    monkeypatch.setattr("fedcybgd.agent.signing.time", type("Clock", (), {"time": staticmethod(lambda: real() + hours * 3600)}))
    client = Client(live.url, signer)
    assert client.me().state in ("enrolled", "active")
    assert client.claim(ClaimRequest(), 0) is None


def test_what_was_signed_before_a_restart_does_nothing_after_it(coordinators: Callable[..., LiveCoordinator]) -> None:
    live = coordinators()
    _, signer, _ = enrolled(live)
    http, recorder = signed(live, signer)
    assert http.get("/agents/me").status_code == 200
    held_back = httpx.Request("GET", f"{live.url}/v1/agents/me")
    signer._sign(held_back)
    last = time.time() + signer._ahead
    wait_for(lambda: time.time() > last + 0.1)
    live.stop()
    live = coordinators()
    for request in (recorder.sent[-1], held_back):
        refused(again(live, request, url=f"{live.url}/v1/agents/me"), 401, "signature_stale")
    assert Client(live.url, signer).me(), "and the agent itself notices nothing"


@pytest.mark.database_decides
def test_who_has_the_database_is_no_agent(live: LiveCoordinator) -> None:
    name, signer, private = enrolled(live)
    with live.database.reading() as session:
        row = session.scalar(select(Agent).where(Agent.name == name))
        assert row is not None
        stolen = {str(getattr(row, column.name)) for column in Agent.__table__.columns}
    assert private not in stolen
    for secret in stolen:
        answer = wire(live, secret).get("/agents/me")
        assert answer.status_code == 401
    refused(wire(live, signer.public_key).get("/agents/me"), 401, "signature_missing")


def test_one_agent_cannot_sign_for_another(live: LiveCoordinator) -> None:
    _, mine, _ = enrolled(live)
    _, other, _ = enrolled(live)
    mine.key_id = other.key_id
    with pytest.raises(CoordinatorSaid) as said:
        Client(live.url, mine).me()
    assert said.value.code == "signature_wrong"
    mine.key_id = "0" * 64
    with pytest.raises(KeyRefused):
        Client(live.url, mine).me()


def test_what_streams_is_bound_by_digest_and_offset(live: LiveCoordinator, model: str) -> None:
    hand = Hand(live)
    signer = Signer(new_private_key())
    hand.http.post("/agents/me/key", json={"public_key": signer.public_key})
    hand.http, _ = signed(live, signer)
    assignment = hand.take(start_run(live, model, [hand]))
    data = b"x" * 1000
    request = httpx.Request(
        "PUT", f"{live.url}/v1/assignments/{assignment.assignment_id}/upload/{digest_of(data)}?offset=0", content=iter([data])
    )  # fmt: skip
    signer._sign(request)
    url = request.url.copy_with(query=b"offset=7")
    refused(again(live, request, content=data, url=url), 401, "signature_wrong")
    assert again(live, request, content=data).json()["offset"] == 1000


# ---- keys come and go -------------------------------------------------------------------------------------------------


def an_agent(live: LiveCoordinator, folder: Path) -> tuple[Home, keys.Speak, str]:
    """An agent of before signatures, with its home."""
    name = fresh("old")
    token = live.operator.post("/enrolment-tokens", {})["token"]
    answer = Client(live.url).enrol(EnrolRequest(token=token, name=name))
    home = Home(folder / "agent")
    credentials.save(home, Credentials(answer.agent_id, name, answer.key))
    return home, lambda mine: Client(live.url, keys.secret_of(mine), mine.coordinator), name


def test_an_older_agent_signs_from_its_next_start_on(live: LiveCoordinator, tmp_path: Path) -> None:
    home, speak, name = an_agent(live, tmp_path)
    old = credentials.load(home)
    assert old.key is not None
    assert speak(old).me().name == name
    keys.settle_in_time(home, speak)
    new = credentials.load(home)
    assert (new.key, new.next_private_key) == (None, None)
    assert speak(new).me().name == name
    with pytest.raises(KeyRefused):
        speak(old).me()
    keys.settle_in_time(home, speak)
    assert credentials.load(home) == new, "once"
    keys.change(home, speak)
    with pytest.raises(KeyRefused):
        speak(new).me()
    assert speak(credentials.load(home)).me().name == name


@pytest.mark.parametrize("taken", [False, True])
def test_a_key_whose_answer_was_lost_is_found_out(live: LiveCoordinator, tmp_path: Path, taken: bool) -> None:
    home, speak, name = an_agent(live, tmp_path)

    def cut(mine: Credentials) -> Client:
        client = speak(mine)
        whole = client.rotate_key

        def lost(public_key: str | None = None) -> str | None:
            if taken:
                whole(public_key)
            raise Unreachable("the line was cut")

        client.rotate_key = lost  # type: ignore[method-assign]
        return client

    with pytest.raises(Unreachable):
        keys.settle(home, cut)
    assert credentials.load(home).next_private_key is not None
    keys.settle_in_time(home, speak)
    assert speak(credentials.load(home)).me().name == name
    assert credentials.load(home).key is None


def test_the_operator_gives_the_owner_another_key_and_the_thief_none(live: LiveCoordinator, tmp_path: Path) -> None:
    home, speak, name = an_agent(live, tmp_path)
    thiefs = Signer(new_private_key())
    key = credentials.load(home).key
    assert wire(live, key).post("/agents/me/key", json={"public_key": thiefs.public_key}).status_code == 200
    with pytest.raises(KeyRefused):
        speak(credentials.load(home)).me()
    earlier = live.operator.post(f"/agents/{name}/reissue", {})
    made = live.operator.post(f"/agents/{name}/reissue", {})
    again_with = {"token": earlier["token"], "name": name, "public_key": thiefs.public_key}
    refused(wire(live).post("/agents", json=again_with), 401, "token_withdrawn")
    # His key was looked at a moment before it was taken away, and he makes another with it a moment after.
    with live.database.transaction() as session, pytest.raises(Unauthorized):
        identity.rotate_key(session, credentials.load(home).agent_id, thiefs.key_id, Signer(new_private_key()).public_key, utcnow())
    with pytest.raises(KeyRefused):
        Client(live.url, thiefs).me()
    request = {"token": made["token"], "name": fresh("somebody"), "public_key": thiefs.public_key}
    assert name in refused(wire(live).post("/agents", json=request), 409, "token_of_another").message
    before = credentials.load(home).agent_id
    from fedcybgd.agent import enrolment

    enrolment.enrol_again(home, Client(live.url), made["token"])
    mine = credentials.load(home)
    assert (mine.agent_id, mine.key) == (before, None)
    assert speak(mine).me().name == name
    refused(wire(live).post("/agents", json=request | {"name": name}), 409, "token_used")
    live.operator.post(f"/agents/{name}/revoke")
    refused(operator(live).post(f"/agents/{name}/reissue", json={}), 403, "agent_revoked")


def test_who_signs_does_not_go_back_to_a_secret(live: LiveCoordinator) -> None:
    _, signer, _ = enrolled(live)
    http, _ = signed(live, signer)
    refused(http.post("/agents/me/key"), 422, "public_key_needed")
    for key, why in (("x", "must look like"), (base64.b64encode(bytes(32)).decode(), "weak")):
        assert why in refused(http.post("/agents/me/key", json={"public_key": key}), 422, "invalid_request").message
    assert http.get("/agents/me").status_code == 200
