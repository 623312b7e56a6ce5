"""An owner who believes one key of a coordinator is told nothing by anybody else: no answer counts that is not signed with it."""

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcybgd.agent.client import Client
from fedcybgd.agent.enrolment import coordinator_key
from fedcybgd.agent.errors import ConfigError, CoordinatorKeyDiffers, CoordinatorSaid, KeyRefused, NotTheCoordinator, ProxyBodyLimit
from fedcybgd.agent.policy import load_policy, template
from fedcybgd.agent.proof import Proof
from fedcybgd.agent.retry import is_retryable
from fedcybgd.agent.settings import Home
from fedcybgd.shared.contract.agents import ClaimRequest, EnrolAnswer
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.provenance import fingerprint
from fedcybgd.shared.contract.signatures import CHALLENGE, PROOF, PROOF_KEY, answered_text, asked_by, is_challenge
from fedcybgd.shared.contract.words import COORDINATOR
from tests.support.hostile import Answer, Asked, serving
from tests.unit.test_weather import CALLS, MINE, every_call, ours

Change = Callable[[Asked], Asked]


class Key:
    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public = base64.b64encode(self._private.public_key().public_bytes_raw()).decode()
        self.fingerprint = fingerprint(self.public)

    def signs(self, asked: Asked, answer: Answer) -> Answer:
        """As docs/protocol.md says, by the prefix that a proxy would take away."""
        path, _, query = asked.path.partition("?")

        def one(name: str) -> list[str]:
            return [asked.headers[name.lower()]] if name.lower() in asked.headers else []

        text = answered_text(
            asked.headers.get(CHALLENGE.lower(), ""),
            asked.method,
            path[path.index("/v1/") :],
            query,
            asked_by(one),
            answer.status,
            answer.body,
        )
        proof = base64.b64encode(self._private.sign(text)).decode()
        return replace(answer, headers=answer.headers | {PROOF_KEY: self.public, PROOF: proof})


OURS, THEIRS = Key(), Key()
NO_WORK = Answer(204, b"", {COORDINATOR: MINE})


def believing(url: str) -> Client:
    return Client(url, "fca_x", MINE, proof=Proof([OURS.fingerprint]))


@every_call
def test_an_answer_that_is_not_signed_says_nothing_whatever_it_says(call: str, tmp_path: Path) -> None:
    """Neither that the key is void, which would end the agent, nor that there is work."""
    answers = [ours(401, "unauthorized"), ours(403, "agent_revoked"), ours(409, "lease_lost"), ours(404, "not_found")]
    if call != "shard":  # the bytes of one are known by their digest
        answers += [ours(200, "x"), NO_WORK]
    said = iter(answers)
    with serving(lambda _: next(said)) as server:
        for _ in answers:
            with pytest.raises(CoordinatorKeyDiffers, match=r"not signed by any; policy\.toml believes") as error:
                CALLS[call](believing(server.url), tmp_path)
            assert error.value.code == "coordinator_key_differs"
            assert is_retryable(error.value), "the right one may come back"
            assert error.value.trouble.code == "coordinator_key_differs"


@every_call
def test_an_answer_signed_with_another_key_says_nothing_and_its_key_is_named(call: str, tmp_path: Path) -> None:
    named = pytest.raises(CoordinatorKeyDiffers, match=f"signed with the key {THEIRS.fingerprint}")
    with serving(lambda asked: THEIRS.signs(asked, ours(401, "unauthorized"))) as server, named:
        CALLS[call](believing(server.url), tmp_path)


@every_call
def test_what_the_right_one_says_counts(call: str, tmp_path: Path) -> None:
    answers = iter([ours(401, "unauthorized"), ours(409, "stale_attempt")])
    with serving(lambda asked: OURS.signs(asked, next(answers))) as server:
        client = believing(server.url + "/behind/a/proxy")
        with pytest.raises(KeyRefused):
            CALLS[call](client, tmp_path)
        with pytest.raises(CoordinatorSaid, match="says so"):
            CALLS[call](client, tmp_path)
        assert client.proof.key == OURS.fingerprint
        challenges = [asked.headers[CHALLENGE.lower()] for asked in server.asked]
        assert len(set(challenges)) == 2
        assert all(map(is_challenge, challenges))


SPOILT: dict[str, Callable[[Asked, Answer], Answer]] = {
    "for another request": lambda asked, answer: OURS.signs(replace(asked, path="/v1/agents/me"), answer),
    "for another query": lambda asked, answer: OURS.signs(replace(asked, path="/v1/assignments/claim?wait=7"), answer),
    "for another method": lambda asked, answer: OURS.signs(replace(asked, method="GET"), answer),
    "made before": lambda asked, answer: OURS.signs(replace(asked, headers={CHALLENGE.lower(): "c" * 22}), answer),
    "of another status": lambda asked, answer: replace(OURS.signs(asked, answer), status=200),
    "of another body": lambda asked, answer: replace(OURS.signs(asked, replace(answer, status=200)), status=200, body=b"{}"),
    "under another name": lambda asked, answer: replace(
        signed := THEIRS.signs(asked, answer), headers=signed.headers | {PROOF_KEY: OURS.public}
    ),
    "that is none": lambda asked, answer: replace(answer, headers=answer.headers | {PROOF_KEY: OURS.public, PROOF: "é*"}),
    "by a key that is none": lambda asked, answer: replace(answer, headers=answer.headers | {PROOF_KEY: "AAAA", PROOF: "AAAA"}),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_signature_is_good_for_one_answer_to_one_request(how: str) -> None:
    with serving(lambda asked: SPOILT[how](asked, NO_WORK)) as server, pytest.raises(CoordinatorKeyDiffers, match="not signed by any"):
        believing(server.url).claim(ClaimRequest(), 0)


def test_weather_stays_weather() -> None:
    """A page in the coordinator's place, and the limit of a proxy, which is not there to sign anything."""
    answers = iter([Answer.page(502), Answer.page(413)])
    with serving(lambda _: next(answers)) as server:
        for kind in (NotTheCoordinator, ProxyBodyLimit):
            with pytest.raises(kind):
                believing(server.url).claim(ClaimRequest(), 0)


def test_a_file_is_known_by_its_digest() -> None:
    good = FileRef(name="tokenizer.json", digest=digest_of(b"{}"), size=2)
    with serving(lambda _: Answer(200, b"{}", {COORDINATOR: MINE})) as server:
        assert believing(server.url).run_file("run_" + 16 * "0", good) == b"{}"
        for client in (believing(server.url), Client(server.url, "fca_x", MINE)):
            with pytest.raises(NotTheCoordinator):
                client.run_file("run_" + 16 * "0", good.model_copy(update={"digest": digest_of(b"[]")}))


def test_whoever_believes_no_key_asks_for_no_proof_and_is_answered_as_before() -> None:
    with serving(lambda _: NO_WORK) as server:
        assert Client(server.url, "fca_x", MINE).claim(ClaimRequest(), 0) is None
        assert CHALLENGE.lower() not in server.asked[0].headers
    with serving(lambda _: NO_WORK) as server:
        curious = Client(server.url, "fca_x", MINE, proof=Proof(wanted=True))
        assert curious.claim(ClaimRequest(), 0) is None, "to know is not to believe"
        assert curious.proof.key is None


def test_the_first_policy_believes_the_key_that_was_given(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.policy.write_text(template([OURS.fingerprint]))
    assert load_policy(home).coordinator.keys == [OURS.fingerprint]
    assert load_policy(home).coordinator.model_fields_set == {"keys"}
    assert coordinator_key(f" {OURS.fingerprint.upper()}\n") == OURS.fingerprint
    assert coordinator_key(None) is None
    for wrong in ("", "abc", OURS.public, OURS.fingerprint + "0"):
        with pytest.raises(ConfigError, match="no fingerprint"):
            coordinator_key(wrong)


def test_an_enrolment_answer_is_no_exception(tmp_path: Path) -> None:
    answer = Answer.json(EnrolAnswer(agent_id="agt_" + 16 * "0", name="a", key=None).model_dump(), 201, **{COORDINATOR: MINE})
    with serving(lambda _: answer) as server, pytest.raises(CoordinatorKeyDiffers):
        CALLS["enrol"](believing(server.url), tmp_path)


def test_the_example_of_the_protocol_is_what_is_signed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    [shown] = re.findall(r"```proved\n(.*?)\n```", page, re.S)
    assert shown.encode() == answered_text("bm9uY2Utb2YtMTYtYnl0ZXM", "POST", "/v1/assignments/claim", "wait=25", "- - -", 204, b"")
