"""The history of blocks: each version is written down in the transaction that makes it the present one."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Block, BlockVersion
from fedcybgd.coordinator.domain.history import VersionFacts, VersionOrigin
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload
from fedcybgd.shared.contract.manifests import ShardRef

FACTS = (BlockVersion.block, BlockVersion.version, BlockVersion.origin, BlockVersion.parent, BlockVersion.round, BlockVersion.exact)


def prepared(session: Session, blocks: Sequence[Block], now: datetime) -> None:
    """The blocks of a run as they were prepared: all that follows is made of them."""
    session.add_all(
        BlockVersion(
            run_id=block.run_id, block=block.name, version=block.version, origin=VersionOrigin.BASE, digest=block.digest,
            size=block.size, parent=None, round=None, change=None, kept=True, exact=True, made_at=now,
        )
        for block in blocks
    )  # fmt: skip


def applied(session: Session, run_id: str, payload: ApplyPayload, made: Sequence[ShardRef], now: datetime) -> None:
    """What the engine made of the deltas of a round, and of which."""
    changes = {change.block.block: change for change in payload.changes}
    session.add_all(
        BlockVersion(
            run_id=run_id, block=ref.block, version=ref.version, origin=VersionOrigin.APPLIED, digest=ref.digest, size=ref.size,
            parent=changes[ref.block].block.version, round=payload.round,
            change=changes[ref.block].model_copy(update={"codecs": []}), kept=True, exact=False, made_at=now,
        )
        for ref in made
    )  # fmt: skip


def facts(session: Session, run_id: str) -> dict[str, dict[int, VersionFacts]]:
    """block → version → what the rules need to know of it."""
    found: dict[str, dict[int, VersionFacts]] = {}
    for row in session.execute(select(*FACTS).where(BlockVersion.run_id == run_id)):
        found.setdefault(row.block, {})[row.version] = VersionFacts(*row)
    return found


def of_run(session: Session, run_id: str) -> Sequence[BlockVersion]:
    """All versions of a run's blocks, those of a block one after another."""
    return session.scalars(
        select(BlockVersion).where(BlockVersion.run_id == run_id).order_by(BlockVersion.block, BlockVersion.version)
    ).all()
