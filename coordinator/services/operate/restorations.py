"""What the blocks of a run were after a number of rounds, and how that is made again."""

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import BlockVersion, Run
from fedcybgd.coordinator.domain.history import lineage
from fedcybgd.coordinator.domain.jobs.payloads import Change, Restoration
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.measure import scores
from fedcybgd.coordinator.services.records import versions
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.sizes import counted

Line = Sequence[BlockVersion]
"""The lineage of a block's present version, the youngest first"""


class RoundUnknown(NotFound):
    """A run has not done so many rounds."""

    code = "round_unknown"


class VersionsGone(Conflict):
    """What it takes to make the older versions again is not kept."""

    code = "versions_not_kept"


class NeverScored(Conflict):
    """A best is asked for, and no score is there."""

    code = "never_scored"


def rounds_of(session: Session, run: Run, after_rounds: int | None) -> int:
    """After how many rounds is meant: so many, or None: when it scored best. Raises `NeverScored`, `RoundUnknown`."""
    if after_rounds is None:
        best = scores.best_of(session, run)
        if best is None:
            raise NeverScored(f"no model of run {run.name} was scored yet (`evaluate` in its run file): say after how many rounds")
        after_rounds = best.after_rounds
    if not 0 <= after_rounds <= run.rounds_done:
        there = f"after 0 to {run.rounds_done} of them" if run.rounds_done else "before them, after 0"
        raise RoundUnknown(f"run {run.name} has done {counted(run.rounds_done, 'round')}: what it was is there {there}")
    return after_rounds


def lines_of(session: Session, run: Run) -> dict[str, Line]:
    """Block → what its present version is made of, the youngest first."""
    rows: dict[str, dict[int, BlockVersion]] = {}
    for row in versions.of_run(session, run.id):
        rows.setdefault(row.block, {})[row.version] = row
    facts = versions.facts(session, run.id)
    return {
        block.name: [rows[block.name][f.version] for f in lineage(facts.get(block.name, {}), block.version)]
        for block in queries.blocks_of(session, run.id)
    }


def is_of(row: BlockVersion, after_rounds: int) -> bool:
    """Whether a version was there after so many rounds."""
    return row.round is None or row.round < after_rounds


def restoration(name: str, line: Line, present: ShardRef, was_there: Callable[[BlockVersion], bool], after_rounds: int) -> Restoration:
    """A block as the youngest version of its line that was there. Raises `VersionsGone`."""
    target = next((row for row in line if was_there(row)), None)
    if target is None:
        raise VersionsGone(f"block {name}: what it was after {counted(after_rounds, 'round')} was before its history began")
    return Restoration(present=present, target=_ref(target), velocity=target.velocity, way=_way(line, target, present))


def after(session: Session, run: Run, after_rounds: int, present: Mapping[str, ShardRef]) -> list[Restoration]:
    """Of each block that was another one after so many rounds. `present`: the blocks as they are. Raises `VersionsGone`."""
    found = [
        restoration(name, line, present[name], lambda row: is_of(row, after_rounds), after_rounds)
        for name, line in lines_of(session, run).items()
        if name in present
    ]
    return [block for block in found if block.target.digest != block.present.digest]


def _ref(row: BlockVersion) -> ShardRef:
    return ShardRef(block=row.block, version=row.version, codec=EXACT, digest=row.digest, size=row.size)


def _way(line: Line, target: BlockVersion, present: ShardRef) -> list[Change]:
    """The changes that lead to `target` from a version whose bytes are kept."""
    way: list[Change] = []
    for row in line[line.index(target) :]:
        if row.exact or row.digest == present.digest:
            return way[::-1]
        if not row.kept or row.change is None:
            break
        way.append(row.change)
    raise VersionsGone(
        f"block {target.block}, version {target.version}: what it takes to make it again is not kept; FEDCOORD_KEEP_VERSIONS says how far back that is"
    )
