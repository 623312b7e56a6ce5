"""An engine elsewhere: lanes of jobs in a process of their own, on any machine that has the database and the blobs."""

import logging
import time
from collections.abc import Callable

from fedcybgd.coordinator import common
from fedcybgd.coordinator.beating import Beating, leave
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.outage import OutageLog, is_away
from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.domain.jobs.kinds import Lane
from fedcybgd.coordinator.home import DatabaseUnusable, check_schema, existing_database, sqlite_file, understood
from fedcybgd.coordinator.jobs.local import LocalJobs
from fedcybgd.coordinator.parts import MakeParts, local
from fedcybgd.coordinator.services.records import replicas
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage.full import FullDisks
from fedcybgd.coordinator.sweeper import tell_of_disks
from fedcybgd.coordinator.wakes.carried import carry
from fedcybgd.shared.files.volumes import network_file_system
from fedcybgd.shared.host import interrupt
from fedcybgd.shared.host.rarely import Rarely
from fedcybgd.shared.host.terminal import log_plainly
from fedcybgd.shared.host.watchdog import Watchdog

log = logging.getLogger("fedcoord.engine")
LOOK_EVERY_S = 2.0


def work(settings: Settings, ready: Callable[[], None], parts: MakeParts = local) -> None:
    """Do jobs until SIGTERM or Ctrl-C, and give back what is under way then; `ready` is called once jobs are looked for."""
    log_plainly(settings.log_level.upper(), "%(asctime)s %(levelname)s %(name)s %(message)s", settings.log_format)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with understood(settings):
        database = opened(settings)
    try:
        with interrupt.at_the_end():
            _work(settings, database, ready, parts)
    except KeyboardInterrupt:
        log.info("asked to stop; what was under way is given back")
    finally:
        database.close()


def opened(settings: Settings) -> Database:
    """The database of coordinators that are, or were, at work. Nothing of it is changed; raises what keeps an engine from being used."""
    file = sqlite_file(settings)
    if file is not None and (kind := network_file_system(file)) is not None:
        raise DatabaseUnusable(
            f"{file} lies on another machine ({kind}), and an SQLite file may be used by processes of one machine only; "
            "for an engine elsewhere, have the coordinator use PostgreSQL (FEDCOORD_DATABASE_URL)"
        )
    database = existing_database(settings)
    check_schema(database, "and only a coordinator, or `fedcoord db upgrade`, brings it there: start that first")
    with database.reading() as session:
        common.check_blobs(session, settings)
    return database


def _work(settings: Settings, database: Database, ready: Callable[[], None], make_parts: MakeParts) -> None:
    made = make_parts(settings, database)
    disks, watchdog = FullDisks(settings.blobs), Watchdog.of()
    outages = OutageLog(lambda: disks.lack(settings.home / "database"))
    database.agree_on_time()
    with database.transaction() as session:
        name = replicas.enter_engine(session, utcnow(), settings.own_lanes)
    jobs = LocalJobs(database, made.new_engine, name, disks.say, settings.own_lanes, settings.engines)
    beating = Beating(database, name, name, lambda: 0, outages, settings.own_lanes, serves=False)

    def heard(signals: Signals) -> None:
        jobs.wake(list(Lane) if signals.anew else signals.lanes)

    try:
        made.wakes.hear(heard)
        carry(database, made.wakes)
        jobs.start()
        beating.start()
        ready()
        watchdog.ready()
        _look_after(database, disks, outages, watchdog)
    finally:
        watchdog.stopping()
        jobs.stop()
        beating.stop()
        leave(database, name)
        made.wakes.close()


def _look_after(database: Database, disks: FullDisks, outages: OutageLog, watchdog: Watchdog) -> None:
    """Until it is interrupted: say which disks are full, and to the watchdog that the database answers."""
    stumbles = Rarely()
    while True:
        time.sleep(LOOK_EVERY_S)
        try:
            database.ask()
            watchdog.alive()
            tell_of_disks(database, disks)
        except Exception as error:
            if is_away(error):
                outages.say(error)
            elif stumbles.is_due():
                log.error("the engine stumbled; it goes on", exc_info=error)
