"""Shards in their codecs: which there are, which must be made, and the manifest that an agent gets."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Row, bindparam, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Assignment, Block, BlockVersion, EncodedShard, Patch, Round, Run, StoredManifest
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, Change, EncodedRef, EncodePayload, EncodeResult, PatchMade
from fedcybgd.coordinator.domain.jobs.registry import APPLY, ENCODE, Done
from fedcybgd.coordinator.services.records import jobs
from fedcybgd.shared.contract.codec import DROPPED
from fedcybgd.shared.contract.manifests import BlobRef, FileRef, Manifest, PatchRef, ShardRef

Encoded = Row[str, str, str, int, str, int]
"""What `ENCODED` finds"""
Step = Row[str, str, str, str, int, float]
"""What `PATCHES` finds"""
MAX_STEPS = 4
"""Patches in a row: beyond that, the whole shard is hardly larger."""
# Columns alone: a lease reads hundreds of such rows, and none of them changes. Statements are made once: that costs more than asking.
PATCHES = select(Patch.target, Patch.base, Patch.kind, Patch.digest, Patch.size, Patch.weight)
STEPS = PATCHES.where(Patch.target.in_(bindparam("targets", expanding=True))).order_by(Patch.size, Patch.base)
OF_ITS_OWN = select(Assignment.id).where(
    Assignment.agent_id == bindparam("agent"), Assignment.applied, Assignment.delta_digest == Patch.digest
)
OWN_STEPS = STEPS.where((Patch.kind != "delta") | OF_ITS_OWN.exists())
ENCODED = select(
    EncodedShard.source, EncodedShard.codec, EncodedShard.digest, EncodedShard.size, EncodedShard.packed_digest, EncodedShard.packed_size
).where(EncodedShard.source.in_(bindparam("sources", expanding=True)))
ENCODED_IN = ENCODED.where(EncodedShard.codec.in_(bindparam("codecs", expanding=True)))


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
    ways = _ways(session, {shard.digest: shard.packed_size for shard in made}, run.id, agent_id, run.spec.compression.delta_patches)
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


def _ways(session: Session, shards: Mapping[str, int], run_id: str, agent_id: str, others: bool) -> dict[str, list[PatchRef]]:
    """The way back from each of these shards through older ones, as long as it costs less than the whole: a step of all in one query.

    `shards`: what each costs as a whole, packed. `others`: any agent's deltas may be steps, and not only its own. Where there is a choice,
    the way is the cheapest to what this agent got last; without that it goes from version to version.
    """
    steps: dict[str, list[Step]] = {}
    left = dict(shards)
    at = set(left)
    for _ in range(MAX_STEPS):
        rows = session.execute(STEPS if others else OWN_STEPS, {"targets": list(at), "agent": agent_id})
        at = set()
        for row in rows:
            steps.setdefault(row.target, []).append(row)
            if row.size < left[row.target]:
                if row.base not in left:
                    at.add(row.base)
                left[row.base] = max(left.get(row.base, 0), left[row.target] - row.size)
        if not at:
            break
    chosen = any(len(rows) > 1 for rows in steps.values())
    held = _got_last(session, run_id, agent_id) if chosen else frozenset[str]()
    return {digest: [_patch(row) for row in _way(digest, whole, steps, held)] for digest, whole in shards.items()}


def _way(target: str, whole: int, steps: Mapping[str, Sequence[Step]], held: Collection[str]) -> list[Step]:
    """The cheapest way to what is held, then on from there; or the smallest step each time. It costs less than the whole, and ends in time."""
    ways = {target: (0, list[Step]())}
    for at in (reached := [target]):
        cost, way = ways[at]
        for step in steps.get(at, ()) if len(way) < MAX_STEPS else ():
            if cost + step.size < min(whole, ways.get(step.base, (whole, []))[0]):
                ways[step.base] = cost + step.size, [*way, step]
                reached.append(step.base)
    cost, way = min((ways[digest] for digest in held if digest in ways), key=lambda found: found[0], default=ways[target])
    while len(way) < MAX_STEPS and (on := steps.get(way[-1].base if way else target)) and cost + on[0].size < whole:
        cost, way = cost + on[0].size, [*way, on[0]]
    return way


def _got_last(session: Session, run_id: str, agent_id: str) -> frozenset[str]:
    """The shards that an agent was last given in a run."""
    assignments = select(StoredManifest.content).join(Assignment, Assignment.manifest_digest == StoredManifest.digest)
    last = assignments.where(Assignment.agent_id == agent_id, Assignment.run_id == run_id).order_by(Assignment.leased_at.desc()).limit(1)
    manifest = session.scalar(last)
    return frozenset(ref.digest for ref in manifest.blocks) if manifest is not None else frozenset()


def _patch(row: Step) -> PatchRef:
    return PatchRef(kind=row.kind, base=row.base, weight=row.weight, digest=row.digest, size=row.size)


def _known(session: Session, sources: Sequence[str], codecs: Iterable[str] | None = None) -> dict[tuple[str, str], Encoded]:
    """By source and codec: in some codecs, or in all."""
    given = {"sources": list(sources), "codecs": sorted(set(codecs or ()))}
    rows = session.execute(ENCODED if codecs is None else ENCODED_IN, given)
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


def apply(session: Session, run: Run, round: Round, members: Sequence[Assignment], changes: list[Change], now: datetime) -> None:
    """Have deltas added to their blocks; the new versions are made in every codec in which the old ones are known, packed exact only where
    the change says so.
    """
    known = _known(session, [change.block.digest for change in changes])
    before = [encoded_ref(known[key]) for key in sorted(known)]
    blocks = {change.block.digest: change.block.block for change in changes}
    payload = ApplyPayload(
        round=round.number, changes=changes, assignments=[a.id for a in members], config=config_of(run),
        task=run.spec.task.kind, before=before, steps=_steps(session, run, round, {ref.digest: blocks[ref.source] for ref in before}),
    )  # fmt: skip
    jobs.enqueue(session, APPLY, run.id, payload, now)


def _steps(session: Session, run: Run, round: Round, shards: Mapping[str, str]) -> list[PatchMade]:
    """The steps to these shards (digest → block) from the older ones that agents hold who come again after this round.

    In turn an agent comes again after so many rounds as it takes all, or, as turns move on by one, after nearly twice as many.
    """
    turn = math.ceil(len(run.participants) / max(1, len(round.seats)))
    changed = select(BlockVersion.block, BlockVersion.round).where(
        BlockVersion.run_id == run.id, BlockVersion.round > round.number + 1 - 2 * turn
    )
    found_in = session.execute(changed).all() if turn > 1 else ()
    changes = Counter(block for block, _ in found_in)
    in_turn = Counter(block for block, number in found_in if number is not None and number > round.number - turn)
    left = {digest: min(changes[b], MAX_STEPS - 1) for digest, b in shards.items() if changes[b] and in_turn[b] < MAX_STEPS}
    found: list[PatchMade] = []
    while left:
        rows = PATCHES.where(Patch.target.in_(left), Patch.kind == "difference").order_by(Patch.size.desc(), Patch.base.desc())
        smallest = {row.target: row for row in session.execute(rows)}  # of several it is the step from one version to the next
        found += [
            PatchMade(target=row.target, kind="difference", base=row.base, digest=row.digest, size=row.size) for row in smallest.values()
        ]
        left = {row.base: left[row.target] - 1 for row in smallest.values() if left[row.target] > 1}
    return found


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
