"""What a coordinator lacks when it starts: of a restored backup, in which the secret of the signing key never is, or of a disk that was lost."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.services.emulators import mending
from fedcybgd.coordinator.services.records import signing
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.upkeep import garbage
from fedcybgd.coordinator.storage import BlobStore
from fedcybgd.shared.contract.sizes import counted

SHOWN = 5


def tell(session: Session, store: BlobStore, now: datetime) -> None:
    """Say which blobs are needed and not there, nor made again when somebody asks for them."""
    stored = {digest for digest, _ in store.stored()}
    lacking = sorted(garbage.needed(session, now) - stored - mending.can_be_made(session, stored))
    if lacking:
        names = "; ".join(f"{mending.names_of(session, digest)} ({digest})" for digest in lacking[:SHOWN])
        more = f"; and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        are = "is" if len(lacking) == 1 else "are"
        said = f"{counted(len(lacking), 'blob')} that {are} needed {are} missing: {names}{more}"
        text = f"{said}; put what is missing back into blobs/, from a backup for instance"
        record(session, now, "error", "blobs_missing", text)


def tell_of_key(session: Session, secret: bytes | None, now: datetime) -> None:
    """Say that what is asked of agents cannot be signed: those whose owners named the key would wait for ever."""
    if (key := signing.newest(session)) is None:
        return
    try:
        signing.opened(key, secret)
    except signing.SigningKeyLost as error:
        text = f"{error.message}. Until then agents whose policy names the key take no work, and provenance is not signed"
        record(session, now, "error", error.code, text)
