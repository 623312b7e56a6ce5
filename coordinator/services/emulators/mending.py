"""A blob is missing or damaged: say which it is, and in which ways it can be made again."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Block, BlockVersion, EncodedShard, HeldOut, Model, ModelUpload, Patch, Run
from fedcybgd.coordinator.domain.jobs.mending import MendPayload, Remedy
from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.services.emulators import shards
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.codec import EXACT

NAMES_SHOWN = 3


def names_of(session: Session, digest: str) -> str:
    """What a blob is, for people: which block of which run, at which version and in which codec."""
    found = [*_of_blocks(session, digest, EXACT)]
    for row in session.scalars(select(EncodedShard).where((EncodedShard.digest == digest) | (EncodedShard.packed_digest == digest))):
        if row.digest != row.source or row.packed_digest == digest:
            codec = f"{row.codec}, packed" if row.packed_digest == digest else row.codec
            found += _of_blocks(session, row.source, codec)
    found += [f"held-out file {row.name}" for row in session.scalars(select(HeldOut).where(HeldOut.digest == digest))]
    found += ["a patch" for _ in session.scalars(select(Patch).where(Patch.digest == digest))]
    for visit in session.scalars(select(Assignment).where(Assignment.delta_digest == digest)):
        found.append(f"the delta of {queries.agent_name(session, visit.agent_id)} for {visit.called} in round {visit.round}")
    carried = select(BlockVersion.block, BlockVersion.version, Run.name).join(Run, Run.id == BlockVersion.run_id)
    for block, version, run_name in session.execute(carried.where(BlockVersion.velocity == digest)):
        found.append(f"what the outer optimizer of run {run_name} carries on from block {block}, version {version}")
    for run in session.scalars(select(Run)):
        found += [f"{file.name} of run {run.name}" for file in run.files if file.digest == digest]
    for model in session.scalars(select(Model)):
        found += [f"{file.name} of model {model.name}" for file in model.files if file.digest == digest]
        found += [f"{block.name} of model {model.name}" for block in model.blocks if block.digest == digest]
    for upload in session.scalars(select(ModelUpload)):
        found += [f"{file.name} of the upload of model {upload.name}" for file in upload.files if file.digest == digest]
    shown = list(dict.fromkeys(found))
    more = f" and {len(shown) - NAMES_SHOWN} more" if len(shown) > NAMES_SHOWN else ""
    return ", ".join(shown[:NAMES_SHOWN]) + more or "nothing that is known here"


def _of_blocks(session: Session, source: str, codec: str) -> list[str]:
    rows = session.execute(select(Block, Run.name).join(Run, Run.id == Block.run_id).where(Block.digest == source)).all()
    return [f"block {block.name} of run {name}, version {block.version}, {codec}" for block, name in rows]


def say_lost(session: Session, error: CoordinatorError, subject: str | None, now: datetime) -> MendPayload:
    """Say that a blob is lost, and tell the engine how it may be made again; there may be no way."""
    digest = str(error.detail["digest"])
    what = "damaged" if error.code == "blob_damaged" else "missing"
    text = f"a blob is {what}: {names_of(session, digest)} ({digest})"
    record(session, now, "error", error.code, text, run_id=subject if session.get(Run, subject or "") else None)
    return payload_of(session, digest)


def done(session: Session, digest: str, subject: str | None, now: datetime) -> None:
    run_id = subject if session.get(Run, subject or "") else None
    record(session, now, "info", "blob_mended", f"made again: {names_of(session, digest)} ({digest})", run_id=run_id)


def payload_of(session: Session, digest: str) -> MendPayload:
    """All ways that the database knows of; the cheapest first."""
    ways: list[Remedy] = []
    sources: list[str] = [digest]
    for row in session.scalars(select(EncodedShard).where((EncodedShard.digest == digest) | (EncodedShard.packed_digest == digest))):
        if row.source != digest:
            ways.append(Remedy(kind="encode", source=row.source, codec=row.codec))
            sources.append(row.source)
    for row in session.scalars(select(EncodedShard).where(EncodedShard.source == digest, EncodedShard.codec == EXACT)):
        ways.append(Remedy(kind="unpack", source=row.packed_digest))
    for patch in session.scalars(select(Patch).where(Patch.target == digest, Patch.kind == "delta")):
        ways.append(Remedy(kind="delta", source=patch.base, change=patch.digest, weight=patch.weight))
    for patch in session.scalars(select(Patch).where(Patch.digest == digest, Patch.kind == "difference")):
        ways.append(Remedy(kind="difference", source=patch.base, change=patch.target))
    for version in session.scalars(select(BlockVersion).where(BlockVersion.velocity == digest, BlockVersion.kept)):
        if again := _since_bytes_are_kept(session, version):
            ways.append(Remedy(kind="versions", source=again[0].block.digest, again=again))
    run = session.scalar(select(Run).join(Block, Block.run_id == Run.id).where(Block.digest.in_(sources)).limit(1))
    if run is None:
        return MendPayload(digest=digest, ways=ways)
    return MendPayload(digest=digest, ways=ways, config=shards.config_of(run), task=run.spec.task.kind)


def _since_bytes_are_kept(session: Session, version: BlockVersion | None) -> list[Change]:
    """What leads to a version from the last before it whose bytes are kept; nothing, where none is."""
    way: list[Change] = []
    while version is not None and not (way and version.exact):
        if version.change is not None:
            way.append(version.change)
        version = session.get(BlockVersion, (version.run_id, version.block, version.parent)) if version.parent is not None else None
    return way[::-1] if version is not None else []


def put_back(session: Session, digest: str) -> str:
    """What a person can do about a blob to which no way leads; of what there was at a beginning, begin again."""
    models = [model for model in session.scalars(select(Model)) if any(block.digest == digest for block in model.blocks)]
    prepared = select(Run.name).join(Block, Block.run_id == Run.id).where(Block.digest == digest, Block.version == 0).limit(1)
    again = ""
    if models:
        again = f", or by adding model {models[0].name} again under another name, from {models[0].source}"
    elif (name := session.scalar(prepared)) is not None:
        again = f", or by creating a run with the same run file as {name}, seed and all, but for its name"
    return f"put it back as blobs/{digest[:2]}/{digest}, from a backup for instance{again}, then resume"


def can_be_made(session: Session, stored: Collection[str]) -> set[str]:
    """What is made again of the blobs `stored` as soon as somebody asks for it, or gone round: encoded shards and patches."""
    found: set[str] = set()
    for row in session.scalars(select(EncodedShard)):
        if row.source in stored:
            found |= {row.digest, row.packed_digest}
    return found | set(session.scalars(select(Patch.digest).where(Patch.kind == "difference")))
