"""Looks after what time changes: lapsed leases, deadlines, silent agents, absent ones to stand in for, and what can be deleted."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import text
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.absence import Absence
from fedcybgd.coordinator.attendance import WRITE_EVERY_S, Attendance
from fedcybgd.coordinator.db.alone import SWEEPING, TELLING, TIDYING, unless_another, wait_alone
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.outage import OutageLog, is_away
from fedcybgd.coordinator.services.operate import deletion, model_uploads
from fedcybgd.coordinator.services.records import audit, job_leases, replicas
from fedcybgd.coordinator.services.records.events import record, was_recorded
from fedcybgd.coordinator.services.upkeep import deadlines, garbage, quarantine, retention, silence, standstill, versions_kept
from fedcybgd.coordinator.services.upkeep import uploads as arrivals
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobStore, StoreFull, Uploads
from fedcybgd.coordinator.storage.full import FullDisks
from fedcybgd.coordinator.wakes.waiting_room import WaitingRoom
from fedcybgd.shared.files.disk import says_full
from fedcybgd.shared.host.rarely import Rarely
from fedcybgd.shared.host.watchdog import Watchdog

log = logging.getLogger("fedcoord.sweeper")
UPLOAD_KEPT_S = 60 * 86_400
"""For as long an agent keeps the delta too (agent/outbox.py): a coordinator may have been away for weeks."""
SWEEP_LONGEST_S, TIDY_LONGEST_S = 60, 6 * 3600
"""After so long another coordinator sweeps, or tidies, should one hang in it."""
TOLD_BY_ANOTHER = timedelta(minutes=1)
"""Within this time another coordinator has met the same disk"""
MOST_BATCHES = 100
"""Batches of old rows that are shortened at one time; the rest waits for the next."""


async def sweep(
    settings: Settings,
    database: Database,
    store: BlobStore,
    uploads: Uploads,
    outages: OutageLog,
    disks: FullDisks,
    absence: Absence,
    waiting: WaitingRoom,
    attendance: Attendance,
    replica: str,
    refusals: audit.Bound,
    watchdog: Watchdog,
) -> None:
    """Run until cancelled; a sweep that fails is tried again. The watchdog hears of those whose transactions went through."""
    tidied = time.monotonic()
    stumbles, tidying = Rarely(), asyncio.create_task(asyncio.sleep(0))

    def failed(error: Exception) -> None:
        if is_away(error):
            outages.say(error)
        elif isinstance(error, StoreFull) or says_full(error):
            disks.say(error if isinstance(error, StoreFull) else StoreFull(str(error)))
        elif stumbles.is_due():
            log.error("the sweeper failed; it tries again", exc_info=error)

    async def tidy_all() -> None:
        """Beside the sweeps, for it may take minutes, and leases end meanwhile."""
        try:
            await run_in_threadpool(tidy_alone, settings, database, store, uploads, replica)
        except Exception as error:
            failed(error)

    while True:
        await asyncio.sleep(settings.sweep_every_s)
        try:
            # Nobody may seem silent whose sign of life waits to be written.
            await attendance.write_if_due(min(WRITE_EVERY_S, settings.silent_after_s / 4))
            await run_in_threadpool(sweep_alone, settings, database, uploads, absence)
            watchdog.alive()
            await run_in_threadpool(tell_of_disks, database, disks)
            await run_in_threadpool(tell_of_refusals, database, refusals)
            waiting.changed()  # also by time: what its agent has not fetched for too long is anybody's
            # By the age of its file a blob just written seems old when the clock was set, or the machine slept.
            if time.monotonic() - tidied > settings.keep_blobs_s / 6 and absence.steady_s() > settings.keep_blobs_s and tidying.done():
                tidied = time.monotonic()
                tidying = asyncio.create_task(tidy_all())
        except Exception as error:
            failed(error)


def tell_of_disks(database: Database, disks: FullDisks) -> None:
    """Write down which became full, and which have room again: once, of a disk that several coordinators share."""
    if news := disks.look():
        with database.transaction() as session:
            wait_alone(session.connection(), TELLING)
            for one in news:
                if was_recorded(session, one.code, one.begins, utcnow() - TOLD_BY_ANOTHER):
                    continue
                record(session, utcnow(), one.level, one.code, one.text)
        disks.told(news)


def tell_of_refusals(database: Database, refusals: audit.Bound, at_once: bool = False) -> None:
    """Write down how many were not written down."""
    now = utcnow()
    if unlisted := refusals.take(now, at_once):
        try:
            with database.transaction() as session:
                audit.write_unlisted(session, now, unlisted)
        except BaseException:
            refusals.give_back(unlisted, now)
            raise


def sweep_alone(settings: Settings, database: Database, uploads: Uploads, absence: Absence) -> None:
    """One coordinator sweeps at a time, for all on the database; the others see that they could write."""
    with unless_another(database.engine, SWEEPING, SWEEP_LONGEST_S) as mine:
        if mine:
            sweep_leases(settings, database, absence)
            discard_uploads(database, uploads)
            return
    with database.transaction() as session:
        session.execute(text("SELECT 1"))


def tidy_alone(settings: Settings, database: Database, store: BlobStore, uploads: Uploads, replica: str) -> None:
    """The coordinator that has lived longest tidies, so that it is done no more often than by one."""
    with database.reading() as session:
        first = next(iter(replicas.alive(session, utcnow())), None)
    if first is None or first.id != replica:
        return
    with unless_another(database.engine, TIDYING, TIDY_LONGEST_S) as mine:
        if mine:
            tidy(settings, database, store, utcnow())
            uploads.sweep(UPLOAD_KEPT_S)


def sweep_leases(settings: Settings, database: Database, absence: Absence, clock: Callable[[], datetime] = utcnow) -> None:
    absences = absence.times
    now = clock()  # before it is looked for an absence: should the process be stopped from here on, nothing ends by an old time
    with database.reading() as session:
        due = deadlines.passed(session, now)
    for run_id in due:
        with database.transaction() as session:
            deadlines.look_after(session, run_id, now)
            if absence.times != absences:
                session.rollback()  # what was extended meanwhile is not to be held against a time before
    with database.transaction() as session:
        job_leases.lapse(session, now)
        silence.silence(session, now, timedelta(seconds=settings.silent_after_s))
        quarantine.end(session, now)
        if absence.times != absences:
            session.rollback()
    with database.reading() as session:
        waiting = standstill.to_look_after(session, now)
    for run_id in waiting:
        with database.transaction() as session:
            standstill.look_after(session, run_id, now)


def discard_uploads(database: Database, uploads: Uploads) -> None:
    """Those of assignments that are over, or that another agent has now."""
    if keys := uploads.keys():
        with database.reading() as session:
            over = arrivals.over(session, keys)
        for key in over:
            uploads.discard(key)


def shorten(settings: Settings, database: Database, now: datetime) -> None:
    before, changed = now - timedelta(seconds=settings.keep_payloads_s), 0
    for _ in range(MOST_BATCHES):
        with database.transaction() as session:
            some = retention.shorten(session, before)
        changed += some
        if not some:
            break
    if changed:
        log.info("took payloads and manifests from %d rows that were finished long ago", changed)


def forget_runs(settings: Settings, database: Database, now: datetime) -> None:
    """Delete the runs that ended long enough ago, one in a transaction."""
    if settings.keep_runs_s == "all":
        return
    before, deleted = now - timedelta(seconds=settings.keep_runs_s), True
    while deleted:
        with database.transaction() as session:
            deleted = deletion.delete_ended_run(session, before, now)


def forget_model_uploads(settings: Settings, database: Database, now: datetime) -> None:
    """Give up models that nobody has sent anything of for long enough."""
    with database.transaction() as session:
        model_uploads.expire(session, now - timedelta(seconds=settings.keep_model_uploads_s), now)


def forget_versions(settings: Settings, database: Database) -> None:
    """Let go what leads to versions beyond those that are to be kept."""
    if settings.keep_versions == "all":
        return
    with database.reading() as session:
        runs = versions_kept.runs_with_more(session)
    for run_id in runs:
        with database.transaction() as session:
            versions_kept.forget(session, run_id, settings.keep_versions)


def tidy(settings: Settings, database: Database, store: BlobStore, now: datetime) -> None:
    """Delete blobs that nothing has needed for long enough, and what finished work was given."""
    shorten(settings, database, now)
    forget_runs(settings, database, now)
    forget_versions(settings, database)
    forget_model_uploads(settings, database, now)
    stored = dict(store.stored())  # before the transaction: what comes later is not judged yet
    with database.reading() as session:  # the whole database is looked through: nobody waits for that with something to write
        judged = garbage.judge(session, stored, now, timedelta(seconds=settings.keep_blobs_s))
    with database.transaction() as session:
        garbage.note(session, judged)
    if store.is_held():
        log.info("nothing is deleted while a backup is made")
    elif count := garbage.collect(store, judged.due):
        log.info("deleted %d blobs that nothing needs any more", count)
    store.sweep()
