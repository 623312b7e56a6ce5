"""Step 5, its bytes: a delta arrives, in as many requests as it takes."""

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.services.path import lease, trained
from fedcybgd.coordinator.services.path.upload import Upload
from fedcybgd.coordinator.services.records import ledgers
from fedcybgd.coordinator.storage import BlobStore, Uploads
from fedcybgd.shared.contract.assignments import UploadOffset


class Receiving:
    """One request that appends bytes to a delta, as long as the lease lasts under which it began; what arrived before a cut is kept."""

    def __init__(self, database: Database, upload: Upload, assignment: Assignment, agent_id: str) -> None:
        self._database, self._upload = database, upload
        self._assignment_id, self._attempt, self._agent_id = assignment.id, assignment.attempt, agent_id
        self._place = (assignment.run_id, assignment.round, agent_id)
        self._arrived = 0

    def append(self, data: bytes) -> None:
        self._arrived += len(data)
        self._upload.append(data, self._may)

    def _may(self) -> None:
        with self._database.reading() as session:
            lease.held(session, self._assignment_id, self._agent_id, self._attempt)

    def end(self) -> UploadOffset:
        """Write down what crossed the wire; it is to be called whatever happened."""
        with self._database.transaction() as session:
            ledgers.count(session, *self._place, "delta", self._arrived)
        return UploadOffset(offset=self._upload.offset, complete=False)


def begin(
    database: Database, uploads: Uploads, assignment_id: str, agent_id: str, digest: str, offset: int, length: int | None
) -> Receiving:
    """Raises before the first byte for a request that cannot be taken: `length` bytes, if that is known, from `offset` on."""
    with database.reading() as session:
        assignment = lease.held(session, assignment_id, agent_id)
        upload = Upload(uploads, assignment_id, agent_id, digest, trained.limit_of(session, assignment))
    upload.check(offset, length)
    return Receiving(database, upload, assignment, agent_id)


def offset(session: Session, store: BlobStore, uploads: Uploads, assignment_id: str, agent_id: str, digest: str) -> UploadOffset:
    """Where to go on with an upload, also after either side died."""
    assignment = lease.held(session, assignment_id, agent_id)
    upload = Upload(uploads, assignment_id, agent_id, digest, trained.limit_of(session, assignment))
    if upload.is_complete(store):
        return UploadOffset(offset=store.size(digest), complete=True)
    return UploadOffset(offset=upload.offset, complete=False)
