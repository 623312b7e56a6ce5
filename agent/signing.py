"""Signs every request with the agent's own key, which never leaves this machine."""

import base64
import secrets
import time
from collections.abc import Generator

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcybgd.shared.contract.signatures import (
    CONTENT_DIGEST,
    SIGNATURE,
    SIGNATURE_INPUT,
    TIME,
    SignatureParameters,
    digest_heading,
    key_id,
    signed_text,
)
from fedcybgd.shared.contract.words import API


def new_private_key() -> str:
    return base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()


class Signer(httpx.Auth):
    """May be used by several threads. A refusal that says the coordinator's time is believed, and the request sent once more."""

    def __init__(self, private_key: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(private_key, validate=True))
        self.public_key = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()
        self.key_id = key_id(self.public_key)
        self._ahead = 0.0
        """seconds that the coordinator's clock is before this machine's"""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        self._sign(request)
        answer = yield request
        said = answer.headers.get(TIME, "")
        if answer.status_code == 401 and said.isascii() and said.isdigit() and len(said) <= 12:
            self._ahead = int(said) - time.time()
            if _whole(request) is not None:  # what is sent as it is read cannot be sent again from here
                self._sign(request)
                yield request

    def once(self, request: httpx.Request) -> httpx.Request:
        """To be given as `auth`: signs, and believes nobody another time."""
        self._sign(request)
        return request

    def _sign(self, request: httpx.Request) -> None:
        body = _whole(request)
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        created, nonce = int(time.time() + self._ahead), secrets.token_urlsafe(16)
        parameters = SignatureParameters(self.key_id, created, nonce, with_body=bool(body))
        digest = digest_heading(body) if body else None
        text = signed_text(parameters, request.method, path[path.find(API + "/") :], query, digest)
        if digest is not None:
            request.headers[CONTENT_DIGEST] = digest
        request.headers[SIGNATURE_INPUT] = f"sig1={parameters.text()}"
        request.headers[SIGNATURE] = f"sig1=:{base64.b64encode(self._key.sign(text)).decode()}:"


def _whole(request: httpx.Request) -> bytes | None:
    """The body; None where it is sent as it is read."""
    return request.read() if isinstance(request.stream, httpx.ByteStream) else None
