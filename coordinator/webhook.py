"""POSTs to an address what happens here, for programs that others have: a chat, a pager, a scheduler."""

import asyncio
import base64
import json
import logging
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.outage import OutageLog, is_away
from fedcybgd.coordinator.domain.webhook import PREFIX, Level, WebhookInvalid, secret_of, signed
from fedcybgd.coordinator.home import leave_secret
from fedcybgd.coordinator.services.operate import webhooks
from fedcybgd.coordinator.services.read import events
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.host.addresses import is_loopback
from fedcybgd.shared.host.authorities import believed
from fedcybgd.shared.host.rarely import Rarely

EVERY_S = 1.0
TOGETHER = 20
"""Events that are told without a pause"""
TIMEOUT_S, WHOLE_S = 15.0, 40.0
"""Of a step of a try, and of all of it: a receiver that sends a byte now and then is not waited for"""
MOST_SECRET = 1000
log = logging.getLogger("fedcoord.webhook")


@dataclass(frozen=True)
class WebhookSettings:
    url: str
    level: Level
    secret: bytes


def webhook_settings(settings: Settings) -> WebhookSettings | None:
    """Who is to be told, if somebody is. Raises `WebhookInvalid` before anything begins: no address, or no secret to sign with."""
    if settings.webhook_url is None:
        return None
    try:
        parts = urlsplit(settings.webhook_url)
        reachable = parts.scheme in ("http", "https") and bool(parts.hostname) and bool(httpx.URL(settings.webhook_url).host)
    except (ValueError, httpx.InvalidURL):
        reachable = False
    if not reachable:
        raise WebhookInvalid("FEDCOORD_WEBHOOK_URL must be an address: https://… or, on this machine, http://…")
    if parts.scheme != "https" and settings.plain_http != "allowed" and not is_loopback(parts.hostname or ""):
        raise WebhookInvalid(
            "FEDCOORD_WEBHOOK_URL is plain HTTP: whoever is on the way reads what happens here. "
            "Use https://; or, where the network itself is trusted, say FEDCOORD_PLAIN_HTTP=allowed"
        )
    return WebhookSettings(settings.webhook_url, settings.webhook_level, _secret(settings.webhook_secret))


class Receiver:
    """Tells one receiver what happens from now on, or since it was told last."""

    def __init__(self, settings: WebhookSettings, database: Database, coordinator: str) -> None:
        self._settings, self._database, self._coordinator = settings, database, coordinator
        self._address = webhooks.address_of(settings.url)
        for name in ("httpx", "httpcore"):  # they log the address, which is often itself a secret, at each POST
            logging.getLogger(name).setLevel(logging.WARNING)
        with database.transaction() as session:
            webhooks.begin(session, self._address, utcnow())

    async def tell(self, outages: OutageLog) -> None:
        """Run until cancelled."""
        stumbles, verify = Rarely(), believed(httpx.create_ssl_context)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=verify, follow_redirects=False, trust_env=False) as http:
            while True:
                try:
                    for _ in range(TOGETHER):
                        if not await self._tell_one(http):
                            break
                except Exception as error:
                    if is_away(error):
                        outages.say(error)
                    elif stumbles.is_due():
                        log.exception("the webhook failed; it tries again")
                await asyncio.sleep(EVERY_S)

    async def _tell_one(self, http: httpx.AsyncClient) -> bool:
        """Whether an event was told, and taken. No transaction lasts while it is on its way."""
        now = utcnow()
        event, message = await run_in_threadpool(self._take, now)
        if event is None:
            return False
        why = None if message is None else await self._post(http, f"evt_{self._coordinator}_{event}", message, now)
        await run_in_threadpool(self._answered, event, why)
        return why is None

    def _take(self, now: datetime) -> tuple[int | None, bytes | None]:
        with self._database.reading() as session:
            if not webhooks.is_due(session, self._address, self._settings.level, now):
                return None, None
        with self._database.transaction() as session:
            event = webhooks.take(session, self._address, self._settings.level, now)
            return event, None if event is None else self._message(session, event)

    def _answered(self, event: int, why: str | None) -> None:
        with self._database.transaction() as session:
            if why is None:
                webhooks.taken(session, self._address, event, utcnow())
            else:
                webhooks.refused(session, self._address, event, why, utcnow())

    def _message(self, session: Session, event: int) -> bytes | None:
        """None: it was deleted with what it was about."""
        entry = events.entry(session, event)
        if entry is None:
            return None
        data = {**entry.model_dump(mode="json"), "coordinator": self._coordinator}
        return json.dumps({"type": entry.code, "timestamp": data["at"], "data": data}).encode()

    async def _post(self, http: httpx.AsyncClient, message_id: str, body: bytes, now: datetime) -> str | None:
        """Why it was not taken; None: it was."""
        headings = {"content-type": "application/json", **signed(self._settings.secret, message_id, now, body)}
        asked = http.stream("POST", self._settings.url, content=body, headers=headings)
        try:
            async with asyncio.timeout(WHOLE_S), asked as answer:  # its body is nothing to us, however long
                return None if answer.is_success else f"it answers {answer.status_code}"
        except TimeoutError:
            return f"no answer within {WHOLE_S:.0f} s"
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _secret(file: Path) -> bytes:
    """Of a file in the home, for whoever may read that; made where there is none."""
    try:
        if not file.exists():
            leave_secret(file, new_secret())
        with file.open("rb") as opened:
            return secret_of(opened.read(MOST_SECRET).decode("ascii", "replace"))
    except OSError as error:
        raise WebhookInvalid(f"the webhook's secret cannot be read: {error}") from error
    except WebhookInvalid as error:
        raise WebhookInvalid(f"{file}: {error.message}; delete the file, and another secret is made") from error
