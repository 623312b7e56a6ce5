"""Requests that agents sign: whose signature it is, that it is good, and that it is made now and for this request alone."""

import re
from collections.abc import Callable
from typing import cast

from anyio import CapacityLimiter
from cryptography.exceptions import InvalidSignature
from fastapi import Request
from sqlalchemy.orm import Session

from fedcybgd.coordinator.attendance import Attendance, Known
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.replays import Replays, SignatureRepeated, SignatureStale
from fedcybgd.coordinator.services.records import keys, spent
from fedcybgd.shared.contract.signatures import (
    CONTENT_DIGEST,
    SIGNATURE,
    SIGNATURE_INPUT,
    SignatureParameters,
    digest_heading,
    read_parameters,
    read_signature,
    signed_text,
)


class SignatureMissing(Unauthorized):
    code = "signature_missing"


class SignatureWrong(Unauthorized):
    code = "signature_wrong"


async def recognise(request: Request, attendance: Attendance, lane: CapacityLimiter | None = None) -> Known:
    """The agent whose signature this is, and good, whatever the body may be. Raises `Unauthorized`, and `AgentRevoked`."""
    if (known := getattr(request.state, "signer", None)) is not None:  # it was looked at by the walls
        return cast(Known, known)
    try:
        said, signature = read_parameters(request.headers[SIGNATURE_INPUT]), read_signature(request.headers.get(SIGNATURE, ""))
    except ValueError as error:
        raise SignatureWrong(str(error)) from error
    known = await attendance.who(said.key_id, lane)
    if known.public_key is None:
        raise SignatureWrong("this agent has no public key here")
    digest = request.headers.get(CONTENT_DIGEST)
    if said.with_body and digest is None:
        raise SignatureWrong(f"the signature is over {CONTENT_DIGEST}, which is missing")
    try:
        known.public_key.verify(signature, _text(request, said, digest))
    except (InvalidSignature, UnicodeEncodeError) as error:
        raise SignatureWrong("the signature is not that of this request, or something has changed the request on its way") from error
    request.state.signer, request.state.signature = known, said
    return known


async def by_secret(key: str, attendance: Attendance, lane: CapacityLimiter | None = None) -> Known:
    """The agent whose secret this is, of those that do not sign yet. Raises `Unauthorized`, and `AgentRevoked`."""
    known = await attendance.who(keys.key_hash(key), lane)
    if known.public_key is not None:  # a public key is no secret
        raise SignatureMissing("this agent signs its requests, and this one is not signed")
    return known


def prove(request: Request, replays: Replays, body: bytes | None) -> None:
    """That a request whose signature is good was made now, this once, with this body. Raises `Unauthorized`.

    None: it streams, and digest and offset in the path stand for it.
    """
    said: SignatureParameters = request.state.signature
    if body is not None and (request.headers.get(CONTENT_DIGEST) if said.with_body else None) != (digest_heading(body) if body else None):
        raise SignatureWrong(f"the body is not the one that was signed ({CONTENT_DIGEST})")
    replays.admit(said)  # last: a request that somebody has changed must not spend the one that the agent makes
    request.state.proven = True


def spender(request: Request) -> Callable[[Session], None]:
    """What the first transaction of a request does before anything else: a signature changes something once, whichever coordinator hears it.

    Nor does one that is older than the last that has: it may have been read on its way when it came to nothing. Raises `SignatureRepeated`
    and `SignatureStale`, which an agent answers by signing again. Who has not signed has nothing to spend.
    """
    said: SignatureParameters | None = getattr(request.state, "signature", None)

    def spend(session: Session) -> None:
        nonlocal said
        match spent.spend(session, said, utcnow()) if said is not None else spent.Heard.FRESH:
            case spent.Heard.REPEATED:
                raise SignatureRepeated("this very request was made already, at another coordinator; sign it again, with another nonce")
            case spent.Heard.OVERTAKEN:
                raise SignatureStale(request.app.state.replays.now())
        said = None

    return spend


async def admitted(request: Request, attendance: Attendance) -> Known:
    """The agent that has signed a request, as the walls have found it. Raises `Unauthorized`, and `AgentRevoked`."""
    known = await recognise(request, attendance)
    if not getattr(request.state, "proven", False):
        raise SignatureWrong("nobody has looked whether this request was made now, and this once")
    return known


def _text(request: Request, said: SignatureParameters, digest: str | None) -> bytes:
    path = cast(bytes, request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    query: bytes = request.scope["query_string"]
    return signed_text(said, request.method, re.sub(r"\?.*", "", path), query.decode("latin-1"), digest)
