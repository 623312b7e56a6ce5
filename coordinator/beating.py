"""Says every few seconds that this process lives, and how many agents wait at it; and that it is gone."""

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import TOLD_APART, Database, clock_differs, utcnow
from fedcybgd.coordinator.db.outage import OutageLog, is_away, reason
from fedcybgd.coordinator.services.records import replicas, spent
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedcoord.beating")


class Beating:
    """A thread, so that it depends on nothing but the database."""

    def __init__(
        self, database: Database, replica: str, home: str, waiting_claims: Callable[[], int], outages: OutageLog, lanes: Iterable[str],
        serves: bool = True, agreed: Callable[[datetime], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """`lanes`: of which it does jobs; `serves`: it is a coordinator, no engine elsewhere; `agreed` hears what time others have."""
        self._database, self._replica, self._home, self._lanes, self._serves = database, replica, home, lanes, serves
        self._waiting_claims, self._outages, self._agreed = waiting_claims, outages, agreed
        self._stopping, self._differed = threading.Event(), timedelta()
        self._thread = threading.Thread(target=self._loop, name="beating", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is written any more, unless the database hangs."""
        self._stopping.set()
        self._thread.join(5)

    def _loop(self) -> None:
        stumbles = Rarely()
        while not self._stopping.wait(replicas.BEAT_EVERY_S):
            try:
                if self._database.agree_on_time():
                    self._agreed(utcnow())
                with self._database.transaction() as session:
                    self._tell_of_clock(session)
                    replicas.beat(session, self._replica, self._home, self._waiting_claims(), utcnow(), self._lanes, self._serves)
                    spent.forget(session, utcnow())
            except Exception as error:
                if is_away(error):
                    self._outages.say(error)
                elif stumbles.is_due():
                    log.error("a sign of life was not written; it is tried again", exc_info=error)

    def _tell_of_clock(self, session: Session) -> None:
        """Once, and again when it differs otherwise."""
        differs = clock_differs()
        if abs(differs - self._differed) > TOLD_APART:
            self._differed, seconds = differs, differs.total_seconds()
            text = f"{abs(seconds):.0f} s {'behind' if seconds > 0 else 'ahead of'} the database's, which counts: have it set (NTP)"
            said = f"the clock of the machine of {self._replica} is {text if differs else 'that of the database again'}"
            record(session, utcnow(), "warning" if differs else "info", "clock_differs", said)


def leave(database: Database, replica: str) -> None:
    """What the process had under way is anybody's."""
    try:
        with database.transaction() as session:
            replicas.leave(session, replica)
    except Exception as error:
        if not is_away(error):
            raise
        log.warning("the database is away (%s): what was under way waits until its lease ends, or the next start here", reason(error))
