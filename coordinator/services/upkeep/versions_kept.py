"""How far back the histories of runs are kept: beyond that their deltas may go."""

from sqlalchemy import select, tuple_, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Block, BlockVersion, Run
from fedcybgd.coordinator.domain.averages import averaged_rounds
from fedcybgd.coordinator.domain.history import VersionOrigin, lineage, to_keep
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.records import versions

TOGETHER = 200
"""Rows in one statement."""


def runs_with_more(session: Session) -> list[str]:
    """Ids of the runs of whose history more is kept than the present versions."""
    present = (Block.run_id == BlockVersion.run_id) & (Block.name == BlockVersion.block) & (Block.version == BlockVersion.version)
    more = select(BlockVersion.run_id).where(BlockVersion.kept, ~select(Block.version).where(present).exists()).distinct()
    return list(session.scalars(more.order_by(BlockVersion.run_id)))


def forget(session: Session, run_id: str, rounds: int) -> int:
    """Let go what is not needed to take a run back by so many rounds, or for its end; returns how many versions that were."""
    run = session.get_one(Run, run_id, with_for_update=True)
    known = versions.facts(session, run_id)
    present = session.execute(select(Block.name, Block.version).where(Block.run_id == run_id)).all()
    lines = {name: lineage(known.get(name, {}), version) for name, version in present}
    keep = to_keep(lines, run.rounds_done, max(rounds, _needed(session, run)))
    this = BlockVersion.run_id == run_id
    rows = session.execute(select(BlockVersion.block, BlockVersion.version, BlockVersion.exact).where(this, BlockVersion.kept)).all()
    kept = set(keep.kept)
    for name, rows_of in known.items():  # that have only the bytes of a kept one cost nothing
        kept |= {(name, f.version) for _, f in sorted(rows_of.items()) if f.origin == VersionOrigin.RESTORED and (name, f.parent) in kept}
    gone = [(row.block, row.version) for row in rows if (row.block, row.version) not in kept]
    exact = [(row.block, row.version) for row in rows if not row.exact and (row.block, row.version) in keep.exact]
    _set(session, run_id, exact, exact=True)
    _set(session, run_id, gone, kept=False, exact=False)
    return len(gone)


def _needed(session: Session, run: Run) -> int:
    """How many rounds back that goes with which the run may end."""
    averaged = run.spec.average_versions
    rounds = averaged_rounds(averaged.last, run.rounds_done) if averaged is not None else 0
    if run.spec.keep_best:
        best = scores.best_of(session, run)
        rounds = max(rounds, run.rounds_done - (best.after_rounds if best is not None and not scores.is_awaited(session, run) else 0))
    return rounds


def _set(session: Session, run_id: str, which: list[tuple[str, int]], **values: bool) -> None:
    for start in range(0, len(which), TOGETHER):
        some = tuple_(BlockVersion.block, BlockVersion.version).in_(which[start : start + TOGETHER])
        session.execute(update(BlockVersion).where(BlockVersion.run_id == run_id, some).values(**values))
