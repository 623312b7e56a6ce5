"""Writes down who did what, in the transaction that does it: it is there if and only if the act is."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import promises
from fedcybgd.coordinator.db.alone import AUDITING, wait_alone
from fedcybgd.coordinator.db.models import Audit
from fedcybgd.coordinator.domain.caller import NOBODY, Caller
from fedcybgd.shared.contract.operators import FIRST_HASH, AuditEntry, check_audit

MACHINE = Caller("machine")
TOGETHER = 1000


def write(session: Session, now: datetime, caller: Caller, act: str, subject: str = "", outcome: str = "done") -> None:
    """Add an entry. Call it last of all: until the commit, whoever else writes one waits."""
    promises.promise(session)
    session.flush()
    wait_alone(session.connection(), AUDITING)
    last = session.execute(select(Audit.seq, Audit.hash).order_by(Audit.seq.desc()).limit(1)).one_or_none()
    entry = AuditEntry(
        seq=last.seq + 1 if last else 1, at=now, caller=caller.kind, name=caller.name[:100], role=caller.role or "",
        address=caller.address[:100], act=act[:200], subject=_plain(subject)[:1000], outcome=_plain(outcome)[:200],
        previous=last.hash if last else FIRST_HASH, hash="",
    )  # fmt: skip
    session.add(Audit(**(dict(entry) | {"hash": entry.own_hash()})))
    session.flush()


def check(session: Session) -> tuple[int, str]:
    """How many entries there are, and the hash of the last one. Raises `AuditBroken`."""
    return check_audit(_all(session))


def _all(session: Session) -> Iterator[AuditEntry]:
    rows = session.scalars(select(Audit).order_by(Audit.seq).execution_options(yield_per=TOGETHER))
    return (AuditEntry.model_validate(row, from_attributes=True) for row in rows)


def _plain(text: str) -> str:
    """As every database keeps it."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")


def write_unlisted(session: Session, now: datetime, refusals: Iterable["Unlisted"]) -> None:
    """Say how many refusals are not in the log, and whose."""
    for one in refusals:
        write(session, now, one.caller, "refused", outcome=f"{one.number} more are not listed")


@dataclass(frozen=True)
class Unlisted:
    """Refusals that were not written down: of one caller, or of strangers from too many addresses."""

    key: str
    caller: Caller
    number: int


@dataclass
class _While:
    caller: Caller
    since: datetime
    written: int = 0
    left_out: int = 0


class Bound:
    """How many refusals of each caller are written in a while: who is refused for ever does not fill the log, and hides nobody else's.

    Whoever has a name is known by it, a stranger by his address; all strangers together have a bound, too.
    """

    def __init__(self, most: int = 30, of_strangers: int = 60, within: timedelta = timedelta(minutes=1)) -> None:
        self._most, self._of_strangers, self._within = most, of_strangers, within
        self._lock = threading.Lock()
        self._whiles: dict[str, _While] = {}

    def outcome(self, caller: Caller, code: str, now: datetime) -> str | None:
        """What to write, with the number of those of this caller that were left out before; None: this one is left out."""
        with self._lock:
            strangers = None if caller.name else self._while("strangers", NOBODY, now)
            if strangers is not None and strangers.written >= self._of_strangers:
                strangers.left_out += 1
                return None
            own = self._while(f"{caller.kind} {caller.name or caller.address}", caller, now)
            if own.written >= self._most:
                own.left_out += 1
                return None
            own.written += 1
            if strangers is not None:
                strangers.written += 1
            more, own.left_out = own.left_out, 0
        return f"{code}; {more} more are not listed" if more else code

    def take(self, now: datetime, at_once: bool = False) -> list[Unlisted]:
        """What was left out in every while that is over, to be written down; `at_once`: in those that go on, too."""
        with self._lock:
            over = {key: one for key, one in self._whiles.items() if at_once or not self._goes_on(one, now)}
            for key in over:
                del self._whiles[key]
        return [Unlisted(key, one.caller, one.left_out) for key, one in over.items() if one.left_out]

    def give_back(self, refusals: Iterable[Unlisted], now: datetime) -> None:
        """They could not be written down for now."""
        with self._lock:
            for one in refusals:
                self._while(one.key, one.caller, now).left_out += one.number

    def _while(self, key: str, caller: Caller, now: datetime) -> _While:
        known = self._whiles.get(key)
        if known is None or not self._goes_on(known, now):
            known = self._whiles[key] = _While(caller, now, left_out=known.left_out if known else 0)
        return known

    def _goes_on(self, one: _While, now: datetime) -> bool:
        return timedelta(0) <= now - one.since <= self._within  # it is over, too, where the clock was set back
