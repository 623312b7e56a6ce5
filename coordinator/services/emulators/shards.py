"""Shards in their codecs: which there are, which must be made, and the manifest that an agent gets."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Assignment, Block, EncodedShard, Patch, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, Change, EncodedRef, EncodePayload, EncodeResult, PatchMade
from fedcybgd.coordinator.domain.jobs.registry import APPLY, ENCODE, Done
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.shared.contract.codec import DROPPED
from fedcybgd.shared.contract.manifests import BlobRef, FileRef, Manifest, PatchRef, ShardRef

Encoded = Row[str, str, str, int, str, int]
"""What `ENCODED` finds"""
MAX_STEPS = 4
"""Patches in a row: beyond that, the whole shard is hardly larger."""
# Columns alone: a lease reads hundreds of such rows, and none of them changes.
PATCHES = select(Patch.target, Patch.base, Patch.kind, Patch.digest, Patch.size, Patch.weight)
ENCODED = select(
    EncodedShard.source, EncodedShard.codec, EncodedShard.digest, EncodedShard.size, EncodedShard.packed_digest, EncodedShard.packed_size
)


def manifest(
    session: Session, run: Run, blocks: Sequence[Block], codecs: Mapping[str, str], agent_id: str, now: datetime
) -> Manifest | None:
    """The present versions of all blocks in these codecs, for one agent; None, and they are being made, while some are not there yet."""
    held = [b for b in blocks if codecs[b.name] != DROPPED]
    known = _known(session, [b.digest for b in held], codecs.values())
    if missing := [_exact(b, codecs[b.name]) for b in held if (b.digest, codecs[b.name]) not in known]:
        request(session, run, missing, now)
        return None
    made = [known[b.digest, codecs[b.name]] for b in held]
    own = None if run.spec.compression.delta_patches else agent_id
    ways = _ways(session, {shard.digest: shard.packed_size for shard in made}, own)
    refs = [_ref(b, shard, ways) for b, shard in zip(held, made, strict=True)]
    return Manifest(files=run.files, blocks=refs, dropped=[b.name for b in blocks if codecs[b.name] == DROPPED])


def _exact(block: Block, codec: str) -> ShardRef:
    """What a shard in a codec is made of."""
    return ShardRef(block=block.name, version=block.version, codec=codec, digest=block.digest, size=block.size)


def _ref(block: Block, made: Encoded, ways: Mapping[str, list[PatchRef]]) -> ShardRef:
    return ShardRef(
        block=block.name, version=block.version, codec=made.codec, digest=made.digest, size=made.size,
        packed=BlobRef(digest=made.packed_digest, size=made.packed_size), patches=ways[made.digest],
    )  # fmt: skip


def _ways(session: Session, shards: Mapping[str, int], only_of: str | None) -> dict[str, list[PatchRef]]:
    """The way back from each of these shards through older ones, as long as it costs less than the whole: a step of all in one query.

    `shards`: what each costs as a whole, packed. `only_of` is the one agent whose deltas may be steps; None: anybody's.
    """
    ways: dict[str, list[PatchRef]] = {digest: [] for digest in shards}
    left, at = dict(shards), {digest: digest for digest in shards}
    for _ in range(MAX_STEPS):
        steps = PATCHES.where(Patch.target.in_(set(at.values())))
        if only_of is not None:
            own = select(Assignment.id).where(Assignment.agent_id == only_of, Assignment.applied, Assignment.delta_digest == Patch.digest)
            steps = steps.where((Patch.kind != "delta") | own.exists())
        rows = session.execute(steps.order_by(Patch.size.desc(), Patch.base.desc()))
        cheapest = {row.target: row for row in rows}
        reached = {digest: cheapest[target] for digest, target in at.items() if target in cheapest}
        at = {}
        for digest, row in reached.items():
            if row.size < left[digest]:
                left[digest] -= row.size
                ways[digest].append(PatchRef(kind=row.kind, base=row.base, weight=row.weight, digest=row.digest, size=row.size))
                at[digest] = row.base
        if not at:
            break
    return ways


def _known(session: Session, sources: Sequence[str], codecs: Iterable[str] | None = None) -> dict[tuple[str, str], Encoded]:
    """By source and codec: in some codecs, or in all."""
    query = ENCODED.where(EncodedShard.source.in_(sources))
    rows = session.execute(query if codecs is None else query.where(EncodedShard.codec.in_(sorted(set(codecs)))))
    return {(row.source, row.codec): row for row in rows}


def request(session: Session, run: Run, wanted: Sequence[ShardRef], now: datetime) -> None:
    """Have shards made that nobody makes yet, those of a block in a job of their own: engines share them, and one that dies loses one block."""
    if not wanted:
        return
    under_way = {(ref.digest, ref.codec) for payload in jobs.unfinished(session, ENCODE) for ref in payload.wanted}
    missing: dict[str, list[ShardRef]] = {}
    for ref in wanted:
        if (ref.digest, ref.codec) not in under_way:
            missing.setdefault(ref.digest, []).append(ref)
    for refs in missing.values():
        payload = EncodePayload(config=config_of(run), task=run.spec.task.kind, wanted=refs)
        jobs.enqueue(session, ENCODE, run.id, payload, now)


def request_ahead(session: Session, run: Run, codecs: Mapping[str, Iterable[str]], now: datetime) -> None:
    """Have the present blocks with these names made in the codecs in which they will be asked for."""
    exact = queries.exact_shards(session, run.id, codecs)
    known = _known(session, [ref.digest for ref in exact], {codec for of_block in codecs.values() for codec in of_block})
    wanted = [(ref, codec) for ref in exact for codec in codecs[ref.block] if codec != DROPPED]
    request(session, run, [ref.model_copy(update={"codec": codec}) for ref, codec in wanted if (ref.digest, codec) not in known], now)


def apply(session: Session, run: Run, round: int, members: Sequence[Assignment], changes: list[Change], now: datetime) -> None:
    """Have deltas added to their blocks; the new versions are made in every codec in which the old ones are known, packed exact only where
    the change says so.
    """
    known = _known(session, [change.block.digest for change in changes])
    payload = ApplyPayload(
        round=round, changes=changes, assignments=[a.id for a in members], config=config_of(run),
        task=run.spec.task.kind, before=[encoded_ref(known[key]) for key in sorted(known)],
    )  # fmt: skip
    jobs.enqueue(session, APPLY, run.id, payload, now)


def encoded(session: Session, done: Done[EncodePayload, EncodeResult]) -> None:
    """Shards are there: with the last of a run whoever waits for them may ask again, also in other runs of the same model."""
    keep_made(session, done.result.shards)
    holders = select(Block.run_id).where(Block.digest.in_([ref.source for ref in done.result.shards])).distinct()
    runs = sorted({done.subject, *session.scalars(holders)})
    # One after another: of two jobs that end at the same moment each would leave it to the other.
    session.execute(select(Run.id).where(Run.id.in_(runs)).order_by(Run.id).with_for_update())
    under_way = {ref.digest for payload in jobs.unfinished(session, ENCODE) for ref in payload.wanted}
    for run_id in runs:
        if under_way.isdisjoint(session.scalars(select(Block.digest).where(Block.run_id == run_id))):
            offer_pending(session, run_id)


def offer_pending(session: Session, run_id: str) -> None:
    """Tell those who may take what waits in a run: what they waited for is there."""
    waiting = select(Assignment.id).where(Assignment.run_id == run_id, Assignment.state == AssignmentState.PENDING)
    signals.offer(session, *session.scalars(waiting))


def config_of(run: Run) -> FileRef:
    return next(file for file in run.files if file.name == "config.json")


def encoded_ref(row: EncodedShard | Encoded) -> EncodedRef:
    packed = BlobRef(digest=row.packed_digest, size=row.packed_size)
    return EncodedRef(source=row.source, codec=row.codec, digest=row.digest, size=row.size, packed=packed)


def keep_made(session: Session, made: Sequence[EncodedRef], patches: Sequence[PatchMade] = ()) -> None:
    """Note shards and patches that a job made; what is known already stays as it is, for it is the same."""
    for ref in made:
        if session.get(EncodedShard, (ref.source, ref.codec)) is None:
            session.add(
                EncodedShard(
                    source=ref.source, codec=ref.codec, digest=ref.digest, size=ref.size,
                    packed_digest=ref.packed.digest, packed_size=ref.packed.size,
                )
            )  # fmt: skip
    for patch in patches:
        if patch.target != patch.base and session.get(Patch, (patch.target, patch.base)) is None:
            session.add(
                Patch(target=patch.target, base=patch.base, kind=patch.kind, digest=patch.digest, size=patch.size, weight=patch.weight)
            )
    session.flush()
