"""Signatures: what the protocol shows is what both sides make, byte for byte."""

import base64
import re
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from fedcybgd.agent import signing
from fedcybgd.agent.signing import Signer
from fedcybgd.coordinator.replays import Replays, SignatureRepeated, SignatureStale
from fedcybgd.shared.contract import signatures
from fedcybgd.shared.contract.agents import KeyRequest
from fedcybgd.shared.contract.signatures import AHEAD_S, TIME, WINDOW_S, SignatureParameters

NEUTRAL = b"\1" + bytes(31)
PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def shown(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_worked_example_is_what_an_agent_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = re.findall(r"`([A-Za-z0-9+/]{43}=)`", PAGE)
    request_line, body = shown("http").split("\n\n")
    method, target = request_line.split()
    headings = dict(line.split(": ", 1) for line in shown("signature").splitlines())
    nonce = re.findall(r'nonce="([^"]*)"', headings["Signature-Input"])[0]
    monkeypatch.setattr(signing.time, "time", lambda: 1767225600.9)
    monkeypatch.setattr(signing.secrets, "token_urlsafe", lambda _: nonce)
    request = httpx.Request(method, f"http://host.example/some/prefix{target}", content=body.encode())
    signer = Signer(private)
    assert signer.public_key == public
    signer._sign(request)
    assert {name: request.headers[name] for name in headings} == headings
    # And with nothing of ours: the text as the page shows it, under the key as the page shows it.
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public))
    key.verify(base64.b64decode(headings["Signature"].removeprefix("sig1=:").removesuffix(":")), shown("signed").encode())
    said = signatures.read_parameters(headings["Signature-Input"])
    path, _, query = target.partition("?")
    assert signatures.signed_text(said, method, path, query, headings["Content-Digest"]).decode() == shown("signed")


def forged(key: bytes) -> bytes | None:
    """A signature of whoever has no private key, that is good under this public one."""
    for message in range(64):
        with suppress(InvalidSignature):
            Ed25519PublicKey.from_public_bytes(key).verify(NEUTRAL + bytes(32), text := b"message %d" % message)
            return text
    return None


@pytest.mark.parametrize("y", sorted(signatures._SMALL))
@pytest.mark.parametrize("sign", [0, 0x80])
def test_a_key_under_which_anybody_can_sign_is_none(y: bytes, sign: int) -> None:
    key = y[:31] + bytes([y[31] | sign])
    assert forged(key), "this one is not weak"
    said = base64.b64encode(key).decode()
    with pytest.raises(ValueError, match="weak"):
        signatures.public_bytes(said)
    with pytest.raises(ValidationError, match="weak"):
        KeyRequest(public_key=said)
    good = Signer(signing.new_private_key()).public_key
    assert KeyRequest(public_key=good).public_key == good
    assert forged(signatures.public_bytes(good)) is None


@pytest.mark.parametrize(
    "heading",
    ["", "sig1=", "sig1=()", 'sig1=("@method");created=1;nonce="n";keyid="k";alg="ed25519"', "sig1=" + "(" * 10_000, 'sig1=("@method" "@path" "@query");created=-1'],
)  # fmt: skip
def test_any_other_form_is_none(heading: str) -> None:
    with pytest.raises(ValueError, match="form"):
        signatures.read_parameters(heading)
    with pytest.raises(ValueError, match="form"):
        signatures.read_signature(heading)


def said(created: float, nonce: str) -> SignatureParameters:
    return SignatureParameters("k", int(created), nonce, with_body=False)


def test_a_nonce_is_remembered_for_as_long_as_it_could_be_used() -> None:
    seconds = 0.0
    replays = Replays(lambda: seconds)
    began = replays.now()
    with pytest.raises(SignatureStale) as stale:
        replays.admit(said(began - 1, "before"))
    assert int((stale.value.headers or {})[TIME]) >= began
    seconds = 1000.0
    created = began + seconds + AHEAD_S - 1
    replays.admit(said(created, "early"))
    while replays.now() <= created + WINDOW_S:  # as long as its time is good
        with pytest.raises(SignatureRepeated):
            replays.admit(said(created, "early"))
        replays.admit(said(replays.now(), f"another at {seconds}"))
        seconds += 7
    with pytest.raises(SignatureStale):
        replays.admit(said(created, "early"))


@pytest.mark.parametrize("set_by", [-300.0, 300.0])
def test_a_clock_that_is_set_is_followed_and_nothing_counts_twice(set_by: float) -> None:
    seconds = 0.0
    replays = Replays(lambda: seconds, began=1000.0)
    seconds = 500.0
    replays.follow(1500.0 + AHEAD_S)
    assert replays.now() == 1500.0, "clocks are never quite alike"
    replays.admit(early := said(1501, "early"))
    replays.follow(1500.0 + set_by)
    assert replays.now() == 1500.0 + set_by
    with pytest.raises(SignatureStale):
        replays.admit(said(1500 + set_by, "before it was set"))
    while replays.now() < max(1700.0, 1700.0 + set_by):
        seconds += 7
        replays.admit(said(replays.now(), f"another at {seconds}"))
        with pytest.raises((SignatureRepeated, SignatureStale)):
            replays.admit(early)
    assert not replays._set_back


def test_what_is_remembered_is_forgotten_again() -> None:
    seconds = 0.0
    replays = Replays(lambda: seconds)
    for number in range(5000):
        seconds += 0.5
        replays.admit(said(replays.now() + 1, str(number)))
    assert len(replays._now) + len(replays._before) <= 2 * 2 * (WINDOW_S + AHEAD_S) + 2


def test_the_time_of_an_answer_that_is_no_refusal_is_not_believed() -> None:
    signer = Signer(signing.new_private_key())
    for status, time in ((200, "1"), (401, "yesterday"), (401, "-5"), (401, "9" * 13), (401, "")):
        flow = signer.auth_flow(httpx.Request("GET", "http://host.example/v1/agents/me"))
        next(flow)
        with pytest.raises(StopIteration):
            flow.send(httpx.Response(status, headers={TIME: time}))
        assert signer._ahead == 0
