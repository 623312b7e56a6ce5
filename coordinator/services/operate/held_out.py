"""Held-out files: which ones were uploaded, by digest, and which runs are scored on them."""

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import HeldOut, Run
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.coordinator.db.upsert import upsert
from fedcybgd.shared.contract.operators import HeldOutView

FILES = Order(HeldOut.created_at, HeldOut.digest, newest_first=True)
FILE_ROWS = select(HeldOut.digest, HeldOut.name, HeldOut.size, HeldOut.created_at)
NAMED = 8
"""Runs that are named of a file"""
DIGEST = Run.spec["evaluate"]["digest"].as_string()


def keep(session: Session, digest: str, name: str, size: int, now: datetime) -> None:
    """Note an uploaded file whose bytes are stored; the first name of the same bytes stays, whatever is repeated or at the same time."""
    row = upsert(session, HeldOut).values(digest=digest, name=name, size=size, created_at=now)
    session.execute(row.on_conflict_do_nothing())


def listed(session: Session, page: Page) -> Listed[HeldOutView]:
    """The newest first, each with the runs that are scored on it."""
    found = FILES.page(session, FILE_ROWS, page)
    runs = runs_on(session, [row.digest for row in found.items])
    return found.map(
        lambda row: HeldOutView(
            digest=row.digest, name=row.name, size=row.size, created_at=row.created_at,
            number_of_runs=len(runs[row.digest]), runs=runs[row.digest][:NAMED],
        )
    )  # fmt: skip


def runs_on(session: Session, digests: Collection[str]) -> defaultdict[str, list[str]]:
    """digest → names of the runs that are scored on that file, the newest first."""
    found = defaultdict(list)
    for digest, name in session.execute(select(DIGEST, Run.name).where(DIGEST.in_(digests)).order_by(Run.created_at.desc())):
        found[digest].append(name)
    return found


def used(session: Session, digest: str) -> HeldOut | None:
    """The file, which is not deleted before this transaction ends: a run is made that is scored on it."""
    return session.get(HeldOut, digest, with_for_update={"read": True})
