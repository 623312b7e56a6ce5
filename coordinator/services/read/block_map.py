"""The block map of a run: every block as it is now, who is at it, what became of the last deltas; and the versions of one block."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import and_, bindparam, select
from sqlalchemy.orm import Session, aliased

from fedcybgd.coordinator.db.models import Agent, Assignment, Block, BlockVersion, EncodedShard, Run
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.history import VersionOrigin
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.shared.contract.run_views import BlockMapView, HolderView, VerdictView, VersionView

BLOCKS, VERSIONS = Order(Block.position), Order(BlockVersion.version, newest_first=True)
HELD, JUDGED, A_FEW = 60, 300, 5
"""Assignments of the present round, and of earlier ones, that are looked at; and deltas of one version that are named"""
CYCLES = 2
"""Of blocks, in which rejected deltas are looked for at the most"""
PRESENT = and_(BlockVersion.run_id == Block.run_id, BlockVersion.block == Block.name, BlockVersion.version == Block.version)
# Statements are made once: that costs more than asking.
BLOCK_ROWS = select(
    Block.name, Block.kind, Block.version, Block.digest, Block.size, Block.num_parameters, Block.position, Block.influence,
    BlockVersion.origin, BlockVersion.round, BlockVersion.made_at,
).join(BlockVersion, PRESENT, isouter=True).where(Block.run_id == bindparam("run"))  # fmt: skip
VERSION_ROWS = select(
    BlockVersion.version, BlockVersion.origin, BlockVersion.parent, BlockVersion.round, BlockVersion.digest, BlockVersion.size,
    BlockVersion.kept, BlockVersion.made_at,
).where(BlockVersion.run_id == bindparam("run"), BlockVersion.block == bindparam("block"))  # fmt: skip
VERDICT_ROWS = (
    select(
        Assignment.id, Assignment.round, Assignment.blocks, Assignment.state, Assignment.reason, Assignment.judged_at,
        Agent.name.label("agent"),
    )
    .join(Agent, Agent.id == Assignment.agent_id, isouter=True)
    .where(Assignment.run_id == bindparam("run"))
    .order_by(Assignment.round.desc(), Assignment.seat, Assignment.id)
    .limit(JUDGED)
)  # fmt: skip
"""Assignments without what is large in them, those of the newest round first"""
ACCEPTED = VERDICT_ROWS.where(Assignment.round.in_(bindparam("rounds", expanding=True)), Assignment.applied)
REJECTED = VERDICT_ROWS.where(Assignment.round >= bindparam("since"), Assignment.state == AssignmentState.REJECTED)
TOLD = select(Assignment.id, Assignment.measured, Assignment.metrics).where(Assignment.id.in_(bindparam("ids", expanding=True)))
SIZES = (
    select(EncodedShard.source, EncodedShard.codec, EncodedShard.packed_size)
    .where(EncodedShard.source.in_(bindparam("digests", expanding=True)))
    .order_by(EncodedShard.source, EncodedShard.codec)
)
HOLDER, MEANT = aliased(Agent), aliased(Agent)
HOLDER_ROWS = (
    select(
        Assignment.blocks, Assignment.state, Assignment.attempt, Assignment.failures, Assignment.lease_expires_at, Assignment.progress,
        HOLDER.name.label("agent"), MEANT.name.label("meant_for"),
    )
    .join(HOLDER, HOLDER.id == Assignment.agent_id, isouter=True)
    .join(MEANT, MEANT.id == Assignment.meant_for, isouter=True)
    .where(
        Assignment.run_id == bindparam("run"), Assignment.round == bindparam("round"),
        Assignment.state.in_((AssignmentState.PENDING, AssignmentState.LEASED, AssignmentState.SUBMITTED)),
    )
    .order_by(Assignment.seat, Assignment.id)
    .limit(HELD)
)  # fmt: skip


def of_run(session: Session, run: Run, page: Page) -> Listed[BlockMapView]:
    """In the order of the model."""
    found = BLOCKS.page(session, BLOCK_ROWS, page, run=run.id)
    trained = {*run.trained_blocks, *run.spec.schedule.always} if run.prepared else set()
    rounds = {row.round for row in found.items if row.origin == VersionOrigin.APPLIED}
    accepted = session.execute(ACCEPTED, {"run": run.id, "rounds": sorted(rounds)})
    since = max(min(rounds, default=run.rounds_done), run.rounds_done - CYCLES * max(1, len(run.trained_blocks)))
    rejected = session.execute(REJECTED, {"run": run.id, "since": since}).all()
    by_round: dict[int, list[Any]] = defaultdict(list)
    for visit in accepted:
        by_round[visit.round].append(visit)
    last = {row.name: _of_block(by_round[row.round], row.name) for row in found.items if row.origin == VersionOrigin.APPLIED}
    refused = {row.name: next((v for v in rejected if row.name in v.blocks), None) for row in found.items}
    told = _told(session, {v.id for v in (*last.values(), *refused.values()) if v is not None})
    sizes, holders = _sizes(session, {row.digest for row in found.items}), _holders(session, run)

    def view(row: Any) -> BlockMapView:
        good = _verdict(last.get(row.name), row.name, told)
        bad = _verdict(refused.get(row.name), row.name, told)
        later = bad is not None and (good is None or good.at is None or (bad.at is not None and bad.at > good.at))
        return BlockMapView(
            name=row.name, kind=row.kind, version=row.version, digest=row.digest, size=row.size, num_parameters=row.num_parameters,
            trained=row.name in trained, position=row.position, influence=row.influence, round=row.round, origin=row.origin,
            changed_at=row.made_at if row.round is not None else None, sizes=sizes.get(row.digest, {}),
            last=good, rejected=bad if later else None, holders=holders.get(row.name, []),
        )  # fmt: skip

    return found.map(view)


def versions_of(session: Session, run: Run, block: str, page: Page) -> Listed[VersionView]:
    """The newest first. Raises `NotFound`."""
    if session.scalar(select(Block.position).where(Block.run_id == run.id, Block.name == block)) is None:
        raise NotFound(f"run {run.name} has no block {block!r}")
    found = VERSIONS.page(session, VERSION_ROWS, page, run=run.id, block=block)
    rounds = {row.round for row in found.items if row.origin == VersionOrigin.APPLIED}
    chosen: dict[int, list[Any]] = defaultdict(list)
    for row in session.execute(ACCEPTED, {"run": run.id, "rounds": sorted(rounds)}):
        if len(chosen[row.round]) < A_FEW:
            chosen[row.round].append(row)
    told = _told(session, {row.id for rows in chosen.values() for row in rows})

    def view(row: Any) -> VersionView:
        made_by = [_verdict(v, block, told) for v in chosen.get(row.round, []) if row.origin == VersionOrigin.APPLIED]
        return VersionView(**{name: getattr(row, name) for name in VersionView.model_fields if name != "made_by"}, made_by=made_by)

    return found.map(view)


def _of_block(of_round: Sequence[Any], block: str) -> Any:
    """Of a round that one whose visited block it is, else the first: the block was trained along in it."""
    return next((row for row in of_round if block in row.blocks), of_round[0] if of_round else None)


def _told(session: Session, ids: Collection[str]) -> dict[str, Any]:
    """What was measured of the deltas of some assignments, and what their agents said."""
    return {row.id: row for row in session.execute(TOLD, {"ids": list(ids)})} if ids else {}


def _verdict(row: Any, block: str, told: dict[str, Any]) -> VerdictView | None:
    if row is None:
        return None
    measured, metrics = told[row.id].measured, told[row.id].metrics
    of_block = measured.get(block) if measured is not None else None
    share = of_block.norm / of_block.base_norm if of_block is not None and of_block.base_norm else None
    return VerdictView(
        round=row.round, agent=row.agent, state=row.state, reason=row.reason, norm=of_block.norm if of_block is not None else None,
        share=share, loss_first=metrics.loss_first if metrics is not None else None,
        loss_last=metrics.loss_last if metrics is not None else None, at=row.judged_at,
    )  # fmt: skip


def _sizes(session: Session, digests: Collection[str]) -> dict[str, dict[str, int]]:
    """Digest of a shard → codec → bytes on the wire."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for source, codec, size in session.execute(SIZES, {"digests": list(digests)}):
        found[source][codec] = size
    return found


def _holders(session: Session, run: Run) -> dict[str, list[HolderView]]:
    """Block → who is at it in the present round."""
    found: dict[str, list[HolderView]] = defaultdict(list)
    for row in session.execute(HOLDER_ROWS, {"run": run.id, "round": run.rounds_done}):
        view = HolderView(**{name: getattr(row, name) for name in HolderView.model_fields})
        for block in row.blocks:
            if len(found[block]) < A_FEW:
                found[block].append(view)
    return found
