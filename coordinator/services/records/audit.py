"""Writes down who did what, in the transaction that does it: it is there if and only if the act is."""

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import promises
from fedcybgd.coordinator.db.alone import AUDITING, wait_alone
from fedcybgd.coordinator.db.models import Audit
from fedcybgd.coordinator.domain.caller import Caller
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


class Bound:
    """How many refusals are written in a while: whoever is refused for ever does not fill the log."""

    def __init__(self, most: int = 30, within: timedelta = timedelta(minutes=1)) -> None:
        self._most, self._within = most, within
        self._lock = threading.Lock()
        self._since: datetime | None = None
        self._written = self._left_out = 0

    def outcome(self, code: str, now: datetime) -> str | None:
        """What to write, with the number of those that were left out before; None: this one is left out."""
        with self._lock:
            if self._since is None or now - self._since > self._within:
                self._since, self._written = now, 0
            if self._written >= self._most:
                self._left_out += 1
                return None
            more, self._left_out = self._left_out, 0
            self._written += 1
        return f"{code}; {more} more are not listed" if more else code
