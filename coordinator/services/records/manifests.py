"""Manifests by their digest: the same one is stored once, however many agents get it."""

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import StoredManifest
from fedcybgd.shared.contract.manifests import Manifest


def store(session: Session, manifest: Manifest) -> str:
    """Its digest, by which an assignment refers to it."""
    digest = manifest.digest
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(StoredManifest)
    # One that is there is written again: so nobody deletes it as unused before it is referred to.
    session.execute(
        insert.values(digest=digest, content=manifest).on_conflict_do_update(index_elements=["digest"], set_={"digest": digest})
    )
    return digest
