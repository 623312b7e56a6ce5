"""Random keys that are shown once and kept as hashes only."""

import secrets

from fedcybgd.shared.contract.digests import digest_of

OPERATOR = "fco_"
AGENT = "fca_"
TOKEN = "fct_"  # noqa: S105 - a prefix


def new_key(prefix: str) -> str:
    """256 random bits; the prefix says what it opens."""
    return prefix + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """Sha256 is enough for keys of 256 random bits, and costs nothing at every poll."""
    return digest_of(key.encode())


def nobodys() -> str:
    """A hash in the place of a key that there is none of."""
    return key_hash(new_key(AGENT))


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(8)}"
