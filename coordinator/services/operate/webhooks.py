"""Tells a receiver what happened: each event in its order, again until it is taken, whoever of the coordinators does it."""

from datetime import datetime, timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Event, Webhook
from fedcybgd.coordinator.domain.webhook import GIVEN_UP_AFTER, Level, levels_from, pause_after
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.digests import digest_of

HELD = timedelta(seconds=60)
"""Longer than a try takes: nobody else tells the receiver meanwhile."""
OWN = ("webhook_refused", "webhook_taken")
"""Not told: a receiver that takes so many a second would be told of each that it did not take, and never be through."""
SETTLED = timedelta(seconds=5)
"""Ids of events are given in another order than they are committed in: one this old has none before it that is still to come, unless of a transaction
that lasts longer."""
LONG = text(
    "SELECT min(xact_start) FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
    " AND xact_start < clock_timestamp() - make_interval(secs => :seconds)"
)
"""When the oldest transaction began that has written, and lasts longer than `SETTLED`"""


def address_of(url: str) -> str:
    return digest_of(url.encode())


def begin(session: Session, address: str, now: datetime) -> None:
    """Know a receiver, from now on."""
    if session.get(Webhook, address) is None:
        session.add(Webhook(address=address, told=session.scalar(select(func.max(Event.id))) or 0, next_at=now))


def is_due(session: Session, address: str, least: Level, now: datetime) -> bool:
    """Whether there is something to tell, and it is time: looked at before anything is written."""
    told = session.scalar(select(Webhook.told).where(Webhook.address == address, Webhook.next_at <= now))
    return told is not None and _next(session, told, least, now) is not None


def take(session: Session, address: str, least: Level, now: datetime) -> int | None:
    """The id of the event that is to be told next, for whoever takes it now; None: there is none, or somebody is at it, or it is too early."""
    due = (Webhook.address == address) & (Webhook.next_at <= now)
    told = session.scalar(update(Webhook).where(due).values(next_at=now + HELD).returning(Webhook.told))
    if told is None:
        return None
    if (found := _next(session, told, least, now)) is None:
        session.execute(update(Webhook).where(Webhook.address == address).values(next_at=now))
    return found


def _next(session: Session, told: int, least: Level, now: datetime) -> int | None:
    settled = Event.at < _settled_before(session, now) if session.get_bind().dialect.name == "postgresql" else Event.id > told
    settled = settled | (Event.at > now + SETTLED)  # of a clock that was ahead
    wanted = (Event.id > told) & Event.level.in_(levels_from(least)) & Event.code.not_in(OWN) & settled
    return session.scalar(select(Event.id).where(wanted).order_by(Event.id).limit(1))


def _settled_before(session: Session, now: datetime) -> datetime:
    oldest: datetime | None = session.scalar(LONG, {"seconds": SETTLED.total_seconds()})
    return (now if oldest is None else min(now, oldest)) - SETTLED


def taken(session: Session, address: str, event: int, now: datetime) -> None:
    """The receiver has it."""
    hook = session.get_one(Webhook, address, with_for_update=True)
    if hook.tries:
        record(session, now, "info", "webhook_taken", f"the webhook's receiver takes events again, after {hook.tries} tries in vain")
    hook.told, hook.tries, hook.failing_since, hook.next_at = max(hook.told, event), 0, None, now


def refused(session: Session, address: str, event: int, why: str, now: datetime) -> None:
    """The receiver has not taken it: again later, but not for ever."""
    hook = session.get_one(Webhook, address, with_for_update=True)
    hook.tries += 1
    hook.failing_since = hook.failing_since or now
    hook.next_at = now + pause_after(hook.tries)
    if hook.tries == 1:
        record(session, now, "warning", "webhook_refused", f"the webhook's receiver does not take events: {why}; it is tried again")
    if now - hook.failing_since >= GIVEN_UP_AFTER:
        record(
            session, now, "error", "webhook_given_up", f"event {event} was not told: the webhook's receiver took nothing for a day: {why}"
        )
        hook.told, hook.tries, hook.failing_since = max(hook.told, event), 0, None
