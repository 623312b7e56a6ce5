"""The coordinator's signing key: its private half is in the database, sealed under a secret that is not."""

import base64
import binascii
import secrets
from datetime import datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import promises
from fedcybgd.coordinator.db.models import SigningKey
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.shared.contract.provenance import fingerprint

NONCE = 12
PURPOSE = b"fedcybgd signing key"


class SigningKeyLost(Conflict):
    """This home has not the secret under which the signing key is sealed."""

    code = "signing_key_sealed"


def newest(session: Session) -> SigningKey | None:
    return session.scalar(select(SigningKey).order_by(SigningKey.created_at.desc(), SigningKey.fingerprint).limit(1))


def renew(session: Session, secret: bytes, now: datetime) -> SigningKey:
    """A new key; what was signed before stays signed with the one before."""
    private = Ed25519PrivateKey.generate()
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    nonce = secrets.token_bytes(NONCE)
    sealed = nonce + ChaCha20Poly1305(secret).encrypt(nonce, private.private_bytes_raw(), PURPOSE)
    row = SigningKey(fingerprint=fingerprint(public), public=public, sealed=base64.b64encode(sealed).decode(), created_at=now)
    session.add(row)
    session.flush()
    promises.promise(session)
    return row


def sign(key: SigningKey, secret: bytes | None, data: bytes) -> str:
    """Raises `SigningKeyLost`."""
    return base64.b64encode(opened(key, secret).sign(data)).decode()


def opened(key: SigningKey, secret: bytes | None) -> Ed25519PrivateKey:
    """The private half. Raises `SigningKeyLost`."""
    try:
        if secret is None:
            raise InvalidTag
        sealed = base64.b64decode(key.sealed)
        return Ed25519PrivateKey.from_private_bytes(ChaCha20Poly1305(secret).decrypt(sealed[:NONCE], sealed[NONCE:], PURPOSE))
    except (InvalidTag, ValueError, binascii.Error) as error:
        raise SigningKeyLost(
            f"this home has not the secret of the signing key {key.fingerprint[:16]}…: copy signing.secret from the home that has it, "
            "or have a new key made: `fedcoord key renew`"
        ) from error
