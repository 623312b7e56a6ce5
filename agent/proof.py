"""Who answers: the coordinator's signature with each answer, for an owner who trusts one coordinator's key and no other."""

import base64
import secrets
from collections.abc import Collection

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedcybgd.agent.errors import CoordinatorKeyDiffers
from fedcybgd.shared.contract.provenance import fingerprint
from fedcybgd.shared.contract.signatures import CHALLENGE, PROOF, PROOF_KEY, answered_text, asked_by, public_bytes
from fedcybgd.shared.contract.words import API


class Proof:
    """What an agent asks of who answers, and holds the answers against. Threads may share one."""

    def __init__(self, keys: Collection[str] = (), wanted: bool = False) -> None:
        """`keys`: fingerprints of those with one of which every answer must be signed; none: any will do. `wanted`: ask all the same."""
        self._keys, self._wanted = frozenset(keys), bool(keys) or wanted
        self.key: str | None = None
        """fingerprint of the key that the last answer was signed with, where it was asked for"""

    @property
    def believes_one(self) -> bool:
        """Whether answers must be signed at all."""
        return bool(self._keys)

    def headings(self) -> dict[str, str]:
        """Of the next request."""
        return {CHALLENGE: secrets.token_urlsafe(16)} if self._wanted else {}

    def check(self, answer: httpx.Response, content: bytes) -> None:
        """Raises `CoordinatorKeyDiffers` for an answer that is not signed as it must be; `content` is its body."""
        if not self._wanted:
            return
        said = _signed_by(answer, content)
        if self._keys and said not in self._keys:
            how = "not signed by any" if said is None else f"signed with the key {said}"
            raise CoordinatorKeyDiffers(
                f"the answer of {answer.request.url.copy_with(query=None)} is {how}; policy.toml believes "
                f"{', '.join(sorted(self._keys))} alone (coordinator.keys). Ask the operator, by another way, for the fingerprint"
            )
        self.key = said


def _signed_by(answer: httpx.Response, content: bytes) -> str | None:
    """The fingerprint of the key; None where there is no good signature of this answer to this request."""
    request, key = answer.request, answer.headers.get(PROOF_KEY, "")
    path, _, query = request.url.raw_path.decode("ascii").partition("?")
    asked = path[path.find(API + "/") :]
    by = asked_by(request.headers.get_list)
    text = answered_text(request.headers[CHALLENGE], request.method, asked, query, by, answer.status_code, content)
    try:
        public = Ed25519PublicKey.from_public_bytes(public_bytes(key))
        public.verify(base64.b64decode(answer.headers.get(PROOF, ""), validate=True), text)
    except (InvalidSignature, ValueError):
        return None
    return fingerprint(key)
