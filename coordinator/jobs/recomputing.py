"""Has versions made again outside of any coordinator: in the process of a command, from files that are left as they are."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedcybgd.coordinator.domain.candidates import candidate_block
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, CandidateBlock
from fedcybgd.coordinator.domain.jobs.measurements import ImportancePayload
from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.domain.verification import ImportanceUnlike, KeptVersion, Versions, VersionUnlike, lineages
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.words import JsonObject, Task


def made_of(versions: Versions) -> list[KeptVersion]:
    """The versions that can be made again, each after its parent."""
    return [
        row
        for known in versions.values()
        for _, row in sorted(known.items())
        if row.kept and row.change is not None and _is_kept(known, row)
    ]


def averages_of(versions: Versions, has_bytes: Callable[[KeptVersion], bool]) -> list[tuple[KeptVersion, CandidateBlock]]:
    """The averages and calibrated heads that can be made again, and how. `has_bytes`: of which versions the bytes are there."""
    found = []
    for block, known in versions.items():
        for _, row in sorted(known.items()):
            of = row if row.calibration is None else known.get(row.facts.parent or 0)
            if of is None or not (row.average or row.calibration):
                continue
            line = lineages(versions, [(block, of.facts.parent if of.average and of.facts.parent is not None else of.facts.version)])[block]
            terms = of.average or [AverageTerm(version=line[0].facts.version, rounds=1)]
            if (how := candidate_block(line, terms, has_bytes)) is not None:
                found.append((row, how.model_copy(update={"calibration": row.calibration})))
    return found


def _is_kept(known: Mapping[int, KeptVersion], row: KeptVersion) -> bool:
    parent = known.get(row.facts.parent) if row.facts.parent is not None else None
    return parent is not None and parent.kept


def recompute(store: EngineStore, rows: Sequence[KeptVersion]) -> None:
    """Make these versions again. Raises `VersionUnlike` for the first that comes out as something else."""
    from fedcybgd.coordinator.engine.recompute import recompute as run

    changes: list[Change] = [row.change for row in rows if row.change is not None]
    found = run(store, changes)
    for row in rows:
        with _named(row):
            digest, velocity = next(found)
        if digest != row.digest:
            raise VersionUnlike(
                f"{row.called}: its parent and its deltas make {digest}, and the history says {row.digest}", digest=row.digest
            )
        if velocity != row.velocity:
            raise VersionUnlike(
                f"{row.called}: its outer optimizer carries on {velocity}, and the history says {row.velocity}", digest=row.velocity
            )


def recompute_averages(store: EngineStore, averages: Sequence[tuple[KeptVersion, CandidateBlock]]) -> None:
    """Make these averages and calibrated heads again. Raises `VersionUnlike` for the first that comes out as something else."""
    from fedcybgd.coordinator.engine.candidates import calibrated_again

    for row, how in averages:
        with _named(row):
            made, before = calibrated_again(store, how)
        if made.digest != row.digest:
            of = "versions that it is the average of make" if how.calibration is None else "version before it and its calibration make"
            raise VersionUnlike(f"{row.called}: the {of} {made.digest}, and the history says {row.digest}", digest=row.digest)
        for ref in (made, before):
            if ref is not None:
                store.delete(ref.digest)


def remeasure(store: EngineStore, payload: ImportancePayload, known: Mapping[str, float]) -> bool:
    """Measure the importance of a run's blocks again; whether that can be done, for older versions may be gone.

    Raises `ImportanceUnlike` where a number is another by more than a thousandth: machines round sums otherwise.
    """
    from fedcybgd.coordinator.engine.importance import importance

    if not all(store.has(digest) for digest in (payload.held_out.digest, *(ref.digest for ref in payload.blocks))):
        return False
    found = importance(store, payload).importance
    for name, value in known.items():
        if not math.isclose(found.get(name, math.nan), value, rel_tol=1e-3):
            raise ImportanceUnlike(f"block {name} has importance {found.get(name)} on the calibration rows, and {value} is written of it")
    return True


def add_joined(store: EngineStore, config: JsonObject, task: Task, blocks: Sequence[ShardRef], scale: float, to: "hashlib._Hash") -> None:
    """Add the bytes that the tensors of an export have, whose model has adapters."""
    from fedcybgd.coordinator.engine.export import pieces_of

    _add(pieces_of(store, config, task, blocks, scale), to)


def add_beside(store: EngineStore, blocks: Sequence[ShardRef], turned: bool, to: "hashlib._Hash") -> None:
    """The same of an export for peft."""
    from fedcybgd.coordinator.engine.peft import beside

    _add(beside(store, blocks, turned), to)


def _add(pieces: Iterable[Any], to: "hashlib._Hash") -> None:
    for piece in pieces:
        for chunk in piece.read():
            to.update(chunk)


@contextlib.contextmanager
def _named(row: KeptVersion) -> Iterator[None]:
    try:
        yield
    except CoordinatorError as error:
        raise type(error)(f"{row.called}: {error.message}", **error.detail) from error
