"""The coordinator signs its answers for those who ask for it, with the key that signs provenance; whoever stands between can add nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from fedcybgd.agent import enrolment, reaching
from fedcybgd.agent.check import check
from fedcybgd.agent.client import Client
from fedcybgd.agent.credentials import load
from fedcybgd.agent.errors import ConfigError, CoordinatorKeyDiffers, CoordinatorSaid, KeyRefused
from fedcybgd.agent.proof import Proof
from fedcybgd.agent.settings import Home, template
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.home import signing_secret
from fedcybgd.coordinator.services.records import signing
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.signatures import CHALLENGE, PROOF, SIGNATURE, SIGNATURE_INPUT
from tests.support.hostile import Answer, Asked, serving
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, start_run, wire


def enrolled(live: LiveCoordinator, place: Path, url: str = "", believed: str | None = None) -> Home:
    """The home of an agent whose owner was given the fingerprint with the token."""
    home, made = Home(place), live.operator.post("/enrolment-tokens", {})
    settings = template(url or live.url, None, [], plain_http=False)
    enrolment.enrol(home, url or live.url, made["token"], fresh("believer"), settings, believed or made["coordinator_key"])
    return home


def client_of(home: Home, url: str = "") -> Client:
    config, rules = reaching.load(home)
    return reaching.client(home, config.model_copy(update={"coordinator": url}) if url else config, rules, load(home))


def test_an_agent_that_believes_the_key_works_like_any_other(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    home = enrolled(live, tmp_path)
    client = client_of(home)
    name = load(home).name
    assert client.me().name == name
    run = start_run(live, model, [Hand(live)])
    assert client.claim(ClaimRequest(runs=[run]), 0) is None
    with pytest.raises(CoordinatorSaid, match="asg_") as said:
        client.state("asg_" + 16 * "0")
    assert said.value.code == "not_found"
    assert client.proof.key == live.operator.get("/status")["signing_key"]
    [coordinator] = [finding for finding in check(home) if finding.what == "coordinator"]
    assert coordinator.ok
    assert f"signed with the key {client.proof.key}" in coordinator.found
    live.operator.post(f"/agents/{name}/revoke")
    with pytest.raises(KeyRefused, match="revoked"):  # also what the walls say is signed
        client.me()


def test_work_is_signed_and_fetched_and_sent_as_ever(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    from tests.support.light import LightAgent

    agent = LightAgent(live, tmp_path / "light")
    agent.client.proof = Proof([live.operator.get("/status")["signing_key"]])
    run = start_run(live, model, [agent])  # type: ignore[list-item]
    assignment = agent.claim(run, wait=10)
    assert assignment is not None
    agent.visit(assignment)
    assert agent.fetched


def test_the_key_of_another_is_not_believed_before_the_token_is_spent(live: LiveCoordinator, tmp_path: Path) -> None:
    with pytest.raises(CoordinatorKeyDiffers):
        enrolled(live, tmp_path, believed="0" * 64)
    assert not Home(tmp_path).credentials.exists()


TAMPERED: dict[str, Callable[[httpx.Response], Answer]] = {
    "another body": lambda a: answered(a, body=json.dumps({**a.json(), "state": "revoked"}).encode()),
    "another status": lambda a: answered(a, status=401, body=b'{"code": "unauthorized", "message": "gone", "detail": {}}'),
    "no signature": lambda a: answered(a, without=PROOF),
}


def answered(answer: httpx.Response, status: int | None = None, body: bytes | None = None, without: str = "") -> Answer:
    skipped = {"content-length", "connection", "date", without.lower()}
    headers = {name: value for name, value in answer.headers.items() if name not in skipped}
    return Answer(status or answer.status_code, answer.content if body is None else body, headers)


@pytest.mark.parametrize("how", [None, *TAMPERED])
def test_whoever_stands_between_can_pass_on_and_nothing_else(live: LiveCoordinator, tmp_path: Path, how: str | None) -> None:
    home = enrolled(live, tmp_path)

    def passed_on(asked: Asked) -> Answer:
        headers = {name: value for name, value in asked.headers.items() if name not in ("host", "connection")}
        answer = httpx.request(asked.method, live.url + asked.path, headers=headers, content=asked.body, verify=False)
        return answered(answer) if how is None else TAMPERED[how](answer)

    with serving(passed_on) as between:
        client = client_of(home, between.url)
        if how is None:
            assert client.me().state == "active"
            return
        with pytest.raises(CoordinatorKeyDiffers):
            client.me()


def test_what_is_said_to_another_is_not_for_the_one_who_asks(live: LiveCoordinator, tmp_path: Path) -> None:
    """Whoever stands between lets the coordinator sign its answer to him: without a signature, with one of his own, or with one too many."""
    home, his = enrolled(live, tmp_path / "one"), load(enrolled(live, tmp_path / "other"))
    assert his.private_key is not None

    def unsigned(request: httpx.Request) -> None:
        for name in (SIGNATURE, SIGNATURE_INPUT):
            del request.headers[name]

    def his_own(request: httpx.Request) -> None:
        next(Signer(his.private_key or "").auth_flow(request))

    def half(request: httpx.Request) -> None:
        del request.headers[SIGNATURE_INPUT]

    def twice(request: httpx.Request) -> None:
        request.headers = httpx.Headers([(SIGNATURE, "sig1=:" + 86 * "A" + "==:"), *request.headers.multi_items()])

    for change in (unsigned, his_own, half, twice):

        def passed_on(asked: Asked, change: Callable[[httpx.Request], None] = change) -> Answer:
            headers = [(name, value) for name, value in asked.headers.items() if name not in ("host", "connection")]
            with httpx.Client(verify=False) as http:
                request = http.build_request(asked.method, live.url + asked.path, headers=headers, content=asked.body)
                change(request)
                return answered(http.send(request))

        with serving(passed_on) as between, pytest.raises(CoordinatorKeyDiffers, match="not signed by any"):
            client_of(home, between.url).me()


def test_an_agent_is_enrolled_with_its_own_key_and_no_other(live: LiveCoordinator, tmp_path: Path) -> None:
    def swapped(asked: Asked) -> Answer:
        headers = {name: value for name, value in asked.headers.items() if name not in ("host", "connection", "content-length")}
        content = asked.body
        if asked.path.endswith("/agents"):
            content = json.dumps({**json.loads(content), "public_key": Signer(new_private_key()).public_key}).encode()
        return answered(httpx.request(asked.method, live.url + asked.path, headers=headers, content=content, verify=False))

    with serving(swapped) as between, pytest.raises(CoordinatorKeyDiffers, match="another key than its own"):
        enrolled(live, tmp_path, between.url)
    assert not Home(tmp_path).credentials.exists()


def test_a_key_that_was_given_is_believed_or_refused_and_never_forgotten(live: LiveCoordinator, tmp_path: Path) -> None:
    made = live.operator.post("/enrolment-tokens", {})
    Home(tmp_path).ready()
    Home(tmp_path).policy.write_text("")
    with pytest.raises(ConfigError, match="believes no key of a coordinator"):
        enrolment.enrol(Home(tmp_path), live.url, made["token"], fresh("a"), template(live.url, None, []), made["coordinator_key"])
    Home(tmp_path).policy.unlink()
    enrolment.enrol(Home(tmp_path), live.url, made["token"], fresh("a"), template(live.url, None, []), made["coordinator_key"])


def test_who_does_not_ask_gets_no_signature_and_a_challenge_has_its_form(live: LiveCoordinator) -> None:
    http = wire(live)
    assert PROOF not in http.get("/health").headers
    for wrong in ("", "short", "x" * 65, "has spaces in it, and is long enough"):
        assert PROOF not in http.get("/health", headers={CHALLENGE: wrong}).headers
    assert PROOF in http.get("/health", headers={CHALLENGE: "x" * 22}).headers


def test_after_a_renewal_owners_say_which_key_they_believe(live: LiveCoordinator, tmp_path: Path) -> None:
    """Two keys may stand in the policy: nobody has to change all agents in one moment."""
    home = enrolled(live, tmp_path)
    client, before = client_of(home), live.operator.get("/status")["signing_key"]
    client.me()
    with live.database.transaction() as session:
        after = signing.renew(session, signing_secret(live.settings, make=True), utcnow()).fingerprint
    live.app.state.prover._until = 0.0  # a minute later
    with pytest.raises(CoordinatorKeyDiffers, match=after):
        client.me()
    home.policy.write_text(f'[coordinator]\nkeys = ["{before}", "{after}"]\n')
    assert client_of(home).me().name


def test_a_coordinator_that_cannot_open_its_key_signs_nothing(live: LiveCoordinator, tmp_path: Path) -> None:
    home = enrolled(live, tmp_path)
    prover = live.app.state.prover
    secret, prover._secret, prover._until = prover._secret, None, 0.0
    try:
        with pytest.raises(CoordinatorKeyDiffers, match="not signed by any"):
            client_of(home).me()
        assert Client(live.url, Signer(new_private_key())).health().status == "ok"
    finally:
        prover._secret, prover._until = secret, 0.0
