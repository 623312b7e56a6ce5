"""The history of blocks: each version is written down in the transaction that makes it the present one."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Block, BlockVersion
from fedcybgd.coordinator.domain.history import VersionFacts, VersionOrigin, lineage
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, HeadCalibration
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, ApplyResult, Change
from fedcybgd.coordinator.domain.verification import KeptVersion
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


def applied(session: Session, run_id: str, payload: ApplyPayload, made: ApplyResult, now: datetime) -> None:
    """What the engine made of the deltas of a round, and of which."""
    changes = {change.block.block: change for change in payload.changes}
    session.add_all(
        BlockVersion(
            run_id=run_id, block=ref.block, version=ref.version, origin=VersionOrigin.APPLIED, digest=ref.digest, size=ref.size,
            parent=changes[ref.block].block.version, round=payload.round,
            change=changes[ref.block].model_copy(update={"codecs": []}), kept=True, exact=False, made_at=now,
            velocity=made.velocities.get(ref.block),
        )
        for ref in made.blocks
    )  # fmt: skip


def velocities(session: Session, run_id: str) -> dict[str, str]:
    """Block → digest of what the outer optimizer carries on from its present version."""
    present = (Block.run_id == BlockVersion.run_id) & (Block.name == BlockVersion.block) & (Block.version == BlockVersion.version)
    rows = select(BlockVersion.block, BlockVersion.velocity).join(Block, present).where(BlockVersion.run_id == run_id)
    return {row.block: row.velocity for row in session.execute(rows) if row.velocity is not None}


def restored(
    session: Session, run_id: str, block: Block, known: Mapping[int, VersionFacts], target: ShardRef, velocity: str | None, now: datetime
) -> None:
    """The present version of a block has the bytes of an older one: under the next number, for a number stands for the same bytes for ever."""
    block.version, block.digest, block.size = block.version + 1, target.digest, target.size
    line = lineage(known, target.version)
    block.changes = sum(f.origin == VersionOrigin.APPLIED for f in line) + sum(f.version for f in line if f.origin == VersionOrigin.FOUND)
    session.add(
        BlockVersion(
            run_id=run_id, block=block.name, version=block.version, origin=VersionOrigin.RESTORED, digest=target.digest, size=target.size,
            parent=target.version, round=None, change=None, kept=True, exact=False, made_at=now, velocity=velocity,
        )
    )  # fmt: skip


def replayed(
    session: Session, run_id: str, block: Block, change: Change, made: ShardRef, velocity: str | None, round: int, now: datetime
) -> None:
    """What was added to a version that was restored."""
    base = change.block.model_copy(update={"version": block.version})
    block.version, block.digest, block.size, block.changes = block.version + 1, made.digest, made.size, block.changes + 1
    session.add(
        BlockVersion(
            run_id=run_id, block=block.name, version=block.version, origin=VersionOrigin.APPLIED, digest=made.digest, size=made.size,
            parent=block.version - 1, round=round, change=change.model_copy(update={"block": base, "codecs": []}), kept=True, exact=False,
            made_at=now, velocity=velocity,
        )
    )  # fmt: skip


def ended_with(
    session: Session, run_id: str, block: Block, origin: VersionOrigin, terms: list[AverageTerm], made: ShardRef, round: int, now: datetime
) -> None:
    """The run ends with the mean of versions of a block, or with one of them. `round` is its last one."""
    parent = block.version
    block.version, block.digest, block.size = parent + 1, made.digest, made.size
    session.add(
        BlockVersion(
            run_id=run_id, block=block.name, version=block.version, origin=origin, digest=made.digest, size=made.size,
            parent=parent, round=round, change=None, average=terms, kept=True, exact=False, made_at=now,
        )
    )  # fmt: skip


def calibrated(
    session: Session, run_id: str, block: Block, calibration: HeadCalibration, made: ShardRef, round: int, now: datetime
) -> None:
    """The run ends with a head that was calibrated after its last round, `round`."""
    parent = block.version
    block.version, block.digest, block.size = parent + 1, made.digest, made.size
    session.add(
        BlockVersion(
            run_id=run_id, block=block.name, version=block.version, origin=VersionOrigin.CALIBRATED, digest=made.digest, size=made.size,
            parent=parent, round=round, change=None, calibration=calibration, kept=True, exact=False, made_at=now,
        )
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


def as_kept(row: BlockVersion) -> KeptVersion:
    """The row as the rules take it."""
    facts = VersionFacts(row.block, row.version, row.origin, row.parent, row.round, row.exact)
    return KeptVersion(facts, row.digest, row.size, row.change, row.kept, row.velocity, row.average or (), row.calibration)
