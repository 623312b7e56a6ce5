"""Who answers: whoever asks for it gets the coordinator's signature with an answer, over what was asked and what is said."""

import base64
import logging
import time

from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.services.records import signing
from fedcybgd.shared.contract.signatures import CHALLENGE, MOST_PROVED, PROOF, PROOF_KEY, answered_text, asked_by, is_challenge

log = logging.getLogger("fedcoord")
KNOWN_FOR_S = 60.0
"""After so long the key is looked up again: `fedcoord key renew` writes it into the database, and tells nobody."""

LOOKED_FOR_S = 5.0
"""While the database is away it is asked no more often."""


class Prover:
    """Signs with the newest signing key; lives as long as the coordinator."""

    def __init__(self, database: Database, secret: bytes | None) -> None:
        self._database, self._secret = database, secret
        self._key: tuple[str, Ed25519PrivateKey] | None = None
        self._until = 0.0

    async def prove(self, text: bytes) -> list[tuple[bytes, bytes]]:
        """The headings of an answer; none where there is no key, or nothing that opens it."""
        if time.monotonic() >= self._until:
            try:
                self._key = await to_thread.run_sync(self._look_up)
                self._until = time.monotonic() + KNOWN_FOR_S
            except Exception as error:  # an answer without a signature is better than none
                self._until = time.monotonic() + LOOKED_FOR_S
                log.debug("answers are signed with the key that was known, if any: %s", error)
        if self._key is None:
            return []
        public, private = self._key
        return [(PROOF_KEY.lower().encode(), public.encode()), (PROOF.lower().encode(), base64.b64encode(private.sign(text)))]

    def _look_up(self) -> tuple[str, Ed25519PrivateKey] | None:
        with self._database.reading() as session:
            key = signing.newest(session)
        try:
            return None if key is None else (key.public, signing.opened(key, self._secret))
        except signing.SigningKeyLost as error:
            log.warning("agents that ask who answers get no proof: %s", error.message)
            return None


class Proved:
    """Adds the headings to answers of those who sent a challenge; `app.state.prover` has the key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        challenge = dict(scope["headers"]).get(CHALLENGE.lower().encode(), b"").decode("latin-1") if scope["type"] == "http" else ""
        if not is_challenge(challenge):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def proved(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_short(message):
                start = message
                return
            if start is None:
                await send(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body", False):
                return
            text = answered_text(
                challenge,
                scope["method"],
                _path(scope),
                scope["query_string"].decode("latin-1"),
                _asked(scope),
                start["status"],
                bytes(body),
            )
            headings = await scope["app"].state.prover.prove(text)
            first, start = {**start, "headers": [*start["headers"], *headings]}, None
            await send(first)
            await send({"type": "http.response.body", "body": bytes(body)})

        await self._app(scope, receive, proved)


def _is_short(start: Message) -> bool:
    """Whether an answer says that it is small, as all do but streams; or it has no body."""
    given = dict(start["headers"])
    kind, length = given.get(b"content-type", b""), given.get(b"content-length", b"0")
    return kind.startswith(b"application/json") and int(length) <= MOST_PROVED if kind else int(length) == 0


def _path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0].decode("latin-1")


def _asked(scope: Scope) -> str:
    return asked_by(lambda name: [value.decode("latin-1") for key, value in scope["headers"] if key == name.lower().encode()])
