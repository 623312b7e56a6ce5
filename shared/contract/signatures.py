"""How an agent signs a request: HTTP message signatures (RFC 9421) with Ed25519, and the digest of the body (RFC 9530), in one fixed form.

Both sides make the same text from a request, byte for byte, and the signature is over that.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedcybgd.shared.contract.digests import digest_of

SIGNATURE, SIGNATURE_INPUT, CONTENT_DIGEST = "Signature", "Signature-Input", "Content-Digest"
TIME = "FedCyBGD-Time"
"""Heading of a refusal of a signature: the coordinator's clock, in whole seconds, for whoever's own goes wrong."""
WINDOW_S = 60
"""Seconds that the time of a signature may lie in the past."""
AHEAD_S = 5
"""And in the future: what lies there could be signed before a restart, and sent again after it."""
PUBLIC_KEY = r"^[A-Za-z0-9+/]{43}=$"
_SMALL = frozenset(
    bytes.fromhex(y)
    for y in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""The points of Ed25519 whose order divides 8, as they can be written, without their sign: anybody can make signatures that are good under these."""
_PARAMETERS = re.compile(
    r'\("@method" "@path" "@query"(?P<body> "content-digest")?\)'
    r';created=(?P<created>[0-9]{1,12});nonce="(?P<nonce>[A-Za-z0-9_-]{22,64})";keyid="(?P<key_id>[0-9a-f]{64})";alg="ed25519"'
)
_SIGNATURE = re.compile(r"sig1=:([A-Za-z0-9+/]{86}==):")


@dataclass(frozen=True)
class SignatureParameters:
    """What a signature says of itself."""

    key_id: str
    created: int
    nonce: str
    with_body: bool
    """whether the digest of the body is signed, too"""

    def text(self) -> str:
        covered = '("@method" "@path" "@query"' + (' "content-digest")' if self.with_body else ")")
        return f'{covered};created={self.created};nonce="{self.nonce}";keyid="{self.key_id}";alg="ed25519"'


def public_bytes(public_key: str) -> bytes:
    """The 32 bytes of a public key. Raises `ValueError` for a text that is none, and for a key under which anybody can sign."""
    key = base64.b64decode(public_key, validate=True)
    if len(key) != 32:
        raise ValueError("an Ed25519 public key has 32 bytes")
    if key[:31] + bytes([key[31] & 0x7F]) in _SMALL:
        raise ValueError("this is a weak Ed25519 key (a point of small order), under which anybody can sign; make another")
    return key


def strong_key(public_key: str) -> str:
    """It, as it is. Raises `ValueError` as `public_bytes` does."""
    public_bytes(public_key)
    return public_key


def key_id(public_key: str) -> str:
    """The name of a key: the sha256 of its text."""
    return digest_of(public_key.encode())


def digest_heading(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signed_text(parameters: SignatureParameters, method: str, path: str, query: str, digest: str | None) -> bytes:
    """What is signed. `path` begins with /v1: what a proxy puts before it is not signed. `query` is without its question mark."""
    lines = [f'"@method": {method}', f'"@path": {path}', f'"@query": ?{query}']
    lines += [f'"content-digest": {digest}'] if parameters.with_body else []
    return "\n".join([*lines, f'"@signature-params": {parameters.text()}']).encode("latin-1")


def read_parameters(heading: str) -> SignatureParameters:
    """Raises `ValueError` for any other form than the one."""
    found = _PARAMETERS.fullmatch(heading.removeprefix("sig1="))
    if found is None or not heading.startswith("sig1="):
        raise ValueError(f"{SIGNATURE_INPUT} has not the form of docs/protocol.md")
    return SignatureParameters(found["key_id"], int(found["created"]), found["nonce"], found["body"] is not None)


def read_signature(heading: str) -> bytes:
    """Raises `ValueError`."""
    found = _SIGNATURE.fullmatch(heading)
    if found is None:
        raise ValueError(f"{SIGNATURE} has not the form of docs/protocol.md")
    return base64.b64decode(found[1], validate=True)


CHALLENGE = "FedCyBGD-Challenge"
"""Heading of a request whose sender wants to know who answers: 22 characters or more that nobody has seen before."""
PROOF, PROOF_KEY = "FedCyBGD-Proof", "FedCyBGD-Proof-Key"
"""Headings of the answer: the signature over it and what was asked, and the public half of the coordinator's signing key, both in base64."""
MOST_PROVED = 16 << 20
"""Bytes of an answer that is signed. What is larger, shards and files, is known by its digest."""
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{22,64}")


def is_challenge(heading: str) -> bool:
    return _CHALLENGE.fullmatch(heading) is not None


def asked_by(values: Callable[[str], Iterable[str]]) -> str:
    """What a request was signed with, as it came: `values` gives all headings of a name. Whoever passes it on without, or with his own, gets
    another answer signed than the one who asks awaits."""
    return " ".join(", ".join(values(name)) or "-" for name in (SIGNATURE_INPUT, SIGNATURE, CONTENT_DIGEST))


def answered_text(challenge: str, method: str, path: str, query: str, asked: str, status: int, body: bytes) -> bytes:
    """What a coordinator signs of an answer; no file that it signs begins like that. `path` and `query` are as in `signed_text`."""
    lines = [f"fedcybgd answer {challenge}", f"{method} {path}?{query}", asked, str(status), digest_heading(body)]
    return "\n".join(lines).encode("latin-1")
