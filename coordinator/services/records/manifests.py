"""Manifests by their digest: the same one is stored once, however many agents get it."""

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import StoredManifest
from fedcybgd.coordinator.db.upsert import upsert
from fedcybgd.shared.contract.manifests import Manifest


def store(session: Session, manifest: Manifest) -> str:
    """Its digest, by which an assignment refers to it."""
    digest = manifest.digest
    row = upsert(session, StoredManifest).values(digest=digest, content=manifest)
    # One that is there is written again: so nobody deletes it as unused before it is referred to. Its key is left alone: to write that
    # would wait for all who have changed an assignment that refers to it, and they may be waiting for the one that we hold.
    session.execute(row.on_conflict_do_update(index_elements=["digest"], set_={"content": row.excluded.content}))
    return digest
