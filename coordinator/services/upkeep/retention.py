"""Finished work keeps its facts, and after a while neither what it was given nor what it was to do."""

from datetime import datetime

from sqlalchemy import delete, exists, null, select, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Job, StoredManifest
from fedcybgd.coordinator.domain.assignment import NOT_COUNTED, AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState, OnFailure
from fedcybgd.coordinator.domain.jobs.registry import kinds_that

TOGETHER = 500
"""Rows in one transaction: others write in between."""


def shorten(session: Session, before: datetime) -> int:
    """Take from some of what ended before then the payload (jobs) or the manifest (assignments); returns how many rows were changed."""
    # What failed and is repeated when its run is resumed still needs its payload.
    over = Job.state.in_((JobState.DONE, JobState.SKIPPED)) | (
        (Job.state == JobState.FAILED) & Job.kind.not_in(kinds_that(OnFailure.REPEATED))
    )
    jobs = session.scalars(select(Job.id).where(Job.payload_json.is_not(None), Job.ended_at < before, over).limit(TOGETHER)).all()
    if jobs:
        session.execute(update(Job).where(Job.id.in_(jobs)).values(payload_json=null()))
    judged = Assignment.state.in_(NOT_COUNTED) | ((Assignment.state == AssignmentState.ACCEPTED) & Assignment.applied)
    with_manifest = select(Assignment.id).where(Assignment.manifest_digest.is_not(None), Assignment.judged_at < before, judged)
    visits = session.scalars(with_manifest.limit(TOGETHER)).all()
    if visits:
        session.execute(update(Assignment).where(Assignment.id.in_(visits)).values(manifest_digest=null()))
    used = exists().where(Assignment.manifest_digest == StoredManifest.digest)
    unused = session.scalars(select(StoredManifest.digest).where(~used).limit(TOGETHER)).all()
    if unused:
        session.execute(delete(StoredManifest).where(StoredManifest.digest.in_(unused)))
    return len(jobs) + len(visits) + len(unused)
