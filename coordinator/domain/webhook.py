"""Rules of the webhook: which events it tells, how what it sends is signed, and when it tries again."""

import base64
import binascii
import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Literal

from fedcybgd.coordinator.errors import CoordinatorError

Level = Literal["info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("info", "warning", "error")
FIRST, LONGEST = timedelta(seconds=5), timedelta(hours=1)
GIVEN_UP_AFTER = timedelta(days=1)
"""A receiver that takes nothing for so long loses the event that it would not take, and is asked to take the next."""
PREFIX = "whsec_"
LEAST_BYTES = 24
"""of a secret, as the specification of Standard Webhooks has it"""


class WebhookInvalid(CoordinatorError):
    code = "webhook_invalid"


def levels_from(least: Level) -> tuple[Level, ...]:
    """Those that are at least as bad."""
    return LEVELS[LEVELS.index(least) :]


def pause_after(tries: int) -> timedelta:
    """Until the next try, when so many in a row have failed: 5 s, 10 s, 20 s, … up to an hour."""
    doubled: int = 1 << min(tries - 1, 20)
    return min(FIRST * doubled, LONGEST)


def secret_of(text: str) -> bytes:
    """The bytes of a secret that is written as `whsec_` and base64. Raises `WebhookInvalid`."""
    said = text.strip()
    try:
        secret = base64.b64decode(said.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not said.startswith(PREFIX) or len(secret) < LEAST_BYTES:
        raise WebhookInvalid(f"the webhook's secret must be {PREFIX} and base64 of at least {LEAST_BYTES} bytes")
    return secret


def signed(secret: bytes, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headings of Standard Webhooks: `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`."""
    timestamp = str(int(at.timestamp()))
    digest = hmac.new(secret, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}
