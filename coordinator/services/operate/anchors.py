"""Creates the anchor of a run: the run that trains its head alone."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.domain.anchor import head_only
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.coordinator.services.operate import prepare
from fedcybgd.coordinator.services.operate.exports import RunNotPrepared


class AnchorThere(Conflict):
    """A run has one anchor."""

    code = "anchor_there"


def create(session: Session, name: str, now: datetime) -> Run:
    """A draft, from the run file of the run `name`. One that failed or was cancelled may be followed by another.

    Raises `AnchorRefused`, `AnchorThere`, `RunNotPrepared`.
    """
    run = queries.run_by_name(session, name, lock=True)
    if not run.prepared:
        raise RunNotPrepared(f"run {run.name} is still being prepared; its anchor goes by the blocks that it has")
    before = queries.anchor_of(session, run.id)
    if before is not None and before.state not in (RunState.FAILED, RunState.CANCELLED):
        raise AnchorThere(f"run {run.name} has an anchor already: {before.name} ({before.id}), which is {before.state}", run_id=before.id)
    return prepare.create(session, head_only(run.spec, run.trained_blocks), now, anchor_of=run.id)
