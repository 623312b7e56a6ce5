"""An agent one version newer or older is served; one of another protocol is told why not."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import save

from fedcybgd.agent import enrolment, reaching
from fedcybgd.agent.check import check
from fedcybgd.agent.client import Client
from fedcybgd.agent.credentials import load
from fedcybgd.agent.errors import CoordinatorSaid, NotTheCoordinator, VersionRefused
from fedcybgd.agent.policy import Policy
from fedcybgd.agent.readiness import judge
from fedcybgd.agent.settings import Config, Home, template
from fedcybgd.shared.contract.agents import ClaimRequest, EnrolRequest, RunOffer, RunReadiness
from fedcybgd.shared.contract.assignments import DeltaSubmission, Progress, RenewRequest, ReturnRequest
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.versions import SPOKEN
from tests.support.hostile import Answer, Asked, serving
from tests.support.live import LiveCoordinator
from tests.support.visits import METRICS, Hand, fresh, last_visit, refused, run_file, start_run, unchanged, wire
from tests.wire.test_samples import SAMPLES, grown

VERSION = "FedCyBGD-Version"
NEWER, OTHERS = "1.99", ["2.0", "0.9", "17.3"]


def grown_call(hand: Hand, method: str, path: str, body: Any) -> httpx.Response:
    """A call with fields that no coordinator knows, in every object of its body."""
    return hand.http.request(method, path, json=grown(body), params={"wait": 10} if path.endswith("claim") else {})


@pytest.mark.parametrize("version", [NEWER, None, "1.0"])
def test_what_only_a_newer_agent_knows_is_left_out_and_of_others_is_a_mistake(
    live: LiveCoordinator, model: str, version: str | None
) -> None:
    hand = Hand(live)
    del hand.http.headers[VERSION]
    if version is not None:
        hand.http.headers[VERSION] = version
    newer = version == NEWER
    run = start_run(live, model, [hand], train={"label_skew": "none"})
    run_id = live.operator.get(f"/runs/{run}")["id"]
    token = live.operator.post("/enrolment-tokens", {})["token"]
    enrolling = {"token": token, "name": fresh("late"), "device": {"kind": "cpu", "cores": 2}}
    report = {"runs": [{"run_id": run_id, "fits": True, "rows": 10}]}
    claim = {"runs": [run], "limits": {"memory_bytes": 0}}
    assert grown_call(hand, "POST", "/agents", enrolling).status_code == (201 if newer else 422)
    assert grown_call(hand, "PUT", "/agents/me/readiness", report).status_code == (204 if newer else 422)
    first = grown_call(hand, "POST", "/assignments/claim", claim)
    assert first.status_code == (200 if newer else 422), first.text

    assignment = hand.take(run)
    path = f"/assignments/{assignment.assignment_id}"
    progress = {"phase": "training", "step": 3, "trouble": {"code": "unreachable"}}
    renewed = grown_call(hand, "POST", f"{path}/renew", {"attempt": assignment.attempt, "progress": progress})
    delta = save(hand.delta(assignment))
    hand.put(assignment, delta)
    with unchanged(live, run):
        if not newer:
            assert "later" in refused(renewed, 422, "invalid_request").message
            submission = {"attempt": assignment.attempt, "digest": digest_of(delta), "metrics": METRICS.model_dump(mode="json")}
            refused(grown_call(hand, "POST", f"{path}/delta", submission), 422, "invalid_request")
            refused(grown_call(hand, "POST", f"{path}/return", {"attempt": assignment.attempt, "reason": "other"}), 422, "invalid_request")
            return
        assert renewed.status_code == 200, renewed.text
        assert last_visit(live, run)["progress"]["step"] == 3
    submission = {"attempt": assignment.attempt, "digest": digest_of(delta), "metrics": METRICS.model_dump(mode="json")}
    sent = grown_call(hand, "POST", f"{path}/delta", submission)
    assert sent.status_code == 202, sent.text
    second = hand.take(run)
    given = grown_call(hand, "POST", f"/assignments/{second.assignment_id}/return", {"attempt": second.attempt, "reason": "a_new_one"})
    assert given.status_code == 200, given.text
    assert given.json()["reason"] == "other"


def test_an_agent_of_before_label_skew_is_told_of_and_gets_no_work_that_it_would_do_otherwise(
    live: LiveCoordinator, model: str, hand: Hand
) -> None:
    old = Hand(live)
    old.http.headers[VERSION] = "1.2"
    run = live.create_run(run_file(model, [old, hand], schedule={"agents": "fixed"}), start=True)
    plain = start_run(live, model, [old], train={"label_skew": "none"})
    assert last_visit(live, run["name"])["meant_for"] == old.name
    assert old.claim(run["name"]) is None
    fits = {"runs": [{"run_id": run["id"], "fits": True}]}
    assert old.http.put("/agents/me/readiness", json=fits).status_code == 204
    assert hand.take(run["name"]).train.label_skew == "smoothed", "what was meant for the old one is anybody's at once"
    [said] = [e["message"] for e in live.operator.get(f"/runs/{run['id']}")["events"] if e["code"] == "agent_unfit"]
    assert old.name in said
    assert "1.2" in said
    assert "update it" in said
    assert old.take(plain).train.label_skew == "none"


def test_an_agent_of_before_adapters_gets_no_work_with_them(live: LiveCoordinator, model: str, hand: Hand) -> None:
    old = Hand(live)
    old.http.headers[VERSION] = "1.3"
    more: dict[str, Any] = {"method": "adapters", "compression": {"policy": "int8"}, "schedule": {"blocks": ["adapters"]}}
    run = live.create_run(run_file(model, [old, hand], **more), start=True)["name"]
    assert old.claim(run) is None
    assert hand.take(run).train.trained == ("adapters", "head")
    fits = {"runs": [{"run_id": live.operator.get(f"/runs/{run}")["id"], "fits": True}]}
    assert old.http.put("/agents/me/readiness", json=fits).status_code == 204
    [said] = [e["message"] for e in live.operator.get(f"/runs/{run}")["events"] if e["code"] == "agent_unfit"]
    assert "1.3" in said
    assert "method: adapters" in said


def test_the_claim_of_a_newer_agent_that_is_gone_takes_no_work(live: LiveCoordinator, model: str, hand: Hand) -> None:
    """What is left out of its body must not hide that its caller is gone."""
    hand.http.headers[VERSION] = NEWER
    run = live.create_run(run_file(model, [hand]))["name"]
    with pytest.raises(httpx.ReadTimeout):
        hand.http.post("/assignments/claim", params={"wait": 60}, json={"runs": [run], "later": 1}, timeout=1)
    live.operator.post(f"/runs/{run}/start")
    assert hand.take(run).attempt == 1


def test_what_a_newer_agent_says_wrongly_is_a_mistake_all_the_same(live: LiveCoordinator, hand: Hand) -> None:
    hand.http.headers[VERSION] = NEWER
    for body in ({"runs": 7}, {"limits": {"memory_bytes": -1}}, []):
        refused(hand.http.post("/assignments/claim", json=body), 422, "invalid_request")
    refused(hand.http.post("/assignments/claim", content=b"{"), 422, "invalid_request")


@pytest.mark.parametrize("version", OTHERS)
@pytest.mark.parametrize("path", ["/assignments/claim", "/health"])
def test_another_protocol_is_refused_with_both_versions_and_what_to_do(live: LiveCoordinator, hand: Hand, version: str, path: str) -> None:
    answer = hand.http.post(path, headers={VERSION: version}, json={})
    said = refused(answer, 426, "version_unsupported")
    assert said.detail == {"spoken": answer.headers[VERSION], "asked": version}
    assert version in said.message
    assert "update" in said.message
    assert answer.headers["FedCyBGD-Coordinator"] == live.app.state.identity


def test_another_major_version_in_the_path_is_told_and_not_404(live: LiveCoordinator) -> None:
    answer = httpx.post(f"{live.url}/v2/assignments/claim", json={})
    assert refused(answer, 426, "version_unsupported").detail["asked"] == "2.0"
    assert answer.headers[VERSION] == str(SPOKEN)


@pytest.mark.parametrize("version", ["", "1", "one", "1.0.0", "-1.0", "1.0\u00b2".encode("latin-1"), "9" * 5 + ".0"])
def test_a_heading_that_is_no_version_is_refused(hand: Hand, version: str | bytes) -> None:
    refused(hand.http.get("/agents/me", headers={VERSION: version}), 426, "version_unsupported")  # type: ignore[dict-item]


def test_every_answer_says_the_version(live: LiveCoordinator, hand: Hand) -> None:
    answers = [hand.http.get("/agents/me"), wire(live).get("/health"), wire(live).get("/nothing"), wire(live).get("/agents/me")]
    assert [a.status_code for a in answers] == [200, 200, 404, 401]
    assert {a.headers[VERSION] for a in answers} == {str(SPOKEN)}


# ---- the other direction: today's agent at a newer coordinator ---------------------------------------------------------


@pytest.fixture
def newer(live: LiveCoordinator) -> Iterator[str]:
    """The URL of a coordinator one version later: every object that it answers with has a field that the agent does not know."""

    def answer(asked: Asked) -> Answer:
        headers = {name: value for name, value in asked.headers.items() if name not in ("host", "content-length")}
        got = httpx.request(asked.method, live.url + asked.path, headers=headers, content=asked.body, timeout=60)
        kept = {
            n: v for n, v in got.headers.items() if n not in ("content-length", "transfer-encoding", "fedcybgd-version", "server", "date")
        }
        is_json = "json" in got.headers.get("content-type", "")
        body = json.dumps(grown(got.json())).encode() if is_json else got.content
        return Answer(got.status_code, body, {**kept, VERSION: NEWER})

    with serving(answer) as server:
        yield server.url


def test_todays_agent_walks_the_straight_path_with_a_newer_coordinator(
    live: LiveCoordinator, newer: str, model: str, tmp_path: Path
) -> None:
    name = fresh("steady")
    token = live.operator.post("/enrolment-tokens", {})["token"]
    key = Client(newer).enrol(EnrolRequest(token=token, name=name)).key
    client = Client(newer, key)
    run = live.create_run(run_file(model, "all") | {"agents": [name]})
    offer = next(offer for offer in client.me().runs if offer.name == run["name"])
    client.say_ready([RunReadiness(run_id=offer.run_id, fits=True)])
    live.operator.post(f"/runs/{run['id']}/start")
    assignment = client.claim(ClaimRequest(runs=[run["name"]]), 10)
    assert assignment is not None
    assert client.health().status == "ok"
    request = RenewRequest(attempt=assignment.attempt, progress=Progress(phase="training"))
    assert client.renew(assignment.assignment_id, request).go_on
    assert client.state(assignment.assignment_id).state == "leased"

    hand = Hand.__new__(Hand)
    hand.http = wire(live, key)
    (tmp_path / "delta").write_bytes(save(hand.delta(assignment)))
    digest, size = digest_of((tmp_path / "delta").read_bytes()), (tmp_path / "delta").stat().st_size
    with pytest.raises(CoordinatorSaid) as early:
        client.submit(assignment.assignment_id, DeltaSubmission(attempt=1, digest=digest, metrics=METRICS))
    assert early.value.code == "upload_incomplete", "an error that says more than is known is the coordinator's all the same"
    assert client.upload(assignment.assignment_id, digest, tmp_path / "delta", 0, size).offset == size
    assert client.submit(assignment.assignment_id, DeltaSubmission(attempt=1, digest=digest, metrics=METRICS)).state == "submitted"
    second = client.claim(ClaimRequest(runs=[run["name"]]), 10)
    assert second is not None
    client.give_back(second.assignment_id, ReturnRequest(attempt=second.attempt, reason="stopping"))
    assert client.rotate_key() != key


def test_an_agent_is_told_when_a_coordinator_does_not_speak_its_version() -> None:
    body = {"code": "version_unsupported", "message": "update the agent", "detail": {"spoken": "2.0", "asked": "1.0"}}
    told = Answer.json(body, 426, **{VERSION: "2.0", "FedCyBGD-Coordinator": "crd_0123456789abcdef"})
    with serving(lambda _: told) as server, pytest.raises(VersionRefused, match="update the agent"):
        Client(server.url, "fca_x").claim(ClaimRequest(), 0)
    assert server.asked[0].headers[VERSION.lower()] == str(SPOKEN)


def test_an_answer_that_cannot_be_read_is_said_to_be_of_another_version() -> None:
    newer = f"{SPOKEN.major}.{SPOKEN.minor + 1}"
    told = Answer.json({"who": "knows"}, **{VERSION: newer, "FedCyBGD-Coordinator": "crd_0123456789abcdef"})
    with (
        serving(lambda _: told) as server,
        pytest.raises(NotTheCoordinator, match=re.escape(f"version {newer} of the protocol, this agent {SPOKEN.major}.{SPOKEN.minor}")),
    ):
        Client(server.url, "fca_x").me()


def test_a_run_of_a_task_that_only_a_newer_agent_knows_is_answered_with_what_to_do(tmp_path: Path) -> None:
    offer = RunOffer.model_validate(json.loads((SAMPLES / "RunOffer.json").read_text())["full"] | {"task": "translation"})
    config = Config.model_validate({"coordinator": "http://127.0.0.1:1", "data": {"path": "rows.jsonl", "runs": ["*"]}})
    verdict = judge(Home(tmp_path), config, Policy(), offer)
    assert (verdict.reason, "update" in verdict.message) == ("manifest_invalid", True)
    assert not verdict.said("exactly").fits


def test_headings_that_something_on_the_way_takes_out_are_missed_and_named(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    def without(headers: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in headers.items()
            if not name.lower().startswith(("fedcybgd", "host", "content-length", "connection"))
        }

    def passed_on(asked: Asked) -> Answer:
        answer = httpx.request(asked.method, live.url + asked.path, headers=without(asked.headers), content=asked.body)
        return Answer(answer.status_code, answer.content, without(answer.headers))

    home = Home(tmp_path)
    with serving(passed_on) as server:
        token = live.operator.post("/enrolment-tokens", {})["token"]
        enrolment.enrol(home, server.url, token, fresh("bare"), template(server.url, None, [], plain_http=False))
        [said] = [finding for finding in check(home) if finding.what == "headings"]
        assert said.ok is False
        assert "FedCyBGD-" in said.advice
        run = live.create_run(run_file(model, "all"), start=True)
        client = reaching.client(home, *reaching.load(home), load(home))
        client.say_ready([RunReadiness(run_id=run["id"], fits=True)])
    [event] = [e["message"] for e in live.operator.get(f"/runs/{run['id']}")["events"] if e["code"] == "agent_unfit"]
    assert "leave FedCyBGD-Version in its requests" in event
