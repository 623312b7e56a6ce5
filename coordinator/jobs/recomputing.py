"""Has versions made again outside of any coordinator: in the process of a command, from files that are left as they are."""

from collections.abc import Mapping, Sequence

from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.domain.verification import KeptVersion, Versions, VersionUnlike
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.storage import EngineStore


def made_of(versions: Versions) -> list[KeptVersion]:
    """The versions that can be made again, each after its parent."""
    return [
        row
        for known in versions.values()
        for _, row in sorted(known.items())
        if row.kept and row.change is not None and _is_kept(known, row)
    ]


def _is_kept(known: Mapping[int, KeptVersion], row: KeptVersion) -> bool:
    parent = known.get(row.facts.parent) if row.facts.parent is not None else None
    return parent is not None and parent.kept


def recompute(store: EngineStore, rows: Sequence[KeptVersion]) -> None:
    """Make these versions again. Raises `VersionUnlike` for the first that comes out as something else."""
    from fedcybgd.coordinator.engine.recompute import recompute as run

    changes: list[Change] = [row.change for row in rows if row.change is not None]
    found = run(store, changes)
    for row in rows:
        try:
            digest = next(found)
        except CoordinatorError as error:
            raise type(error)(f"{row.called}: {error.message}", **error.detail) from error
        if digest != row.digest:
            raise VersionUnlike(
                f"{row.called}: its parent and its deltas make {digest}, and the history says {row.digest}", digest=row.digest
            )
