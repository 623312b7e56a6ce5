"""Makes the versions of a block again, one after another, as they were made the first time."""

from collections import Counter
from collections.abc import Iterator, Sequence

from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.storage import EngineStore


def recompute(store: EngineStore, changes: Sequence[Change]) -> Iterator[tuple[str, str | None]]:
    """Of each change, the digests of the version that comes of it and of what the outer optimizer carries on. A change may begin from what
    an earlier one has made: that is in the store until then.

    Memory holds some rows of a tensor, the store as many versions of the block as are still begun from.
    """
    begun = Counter(digest for change in changes for digest in _begins_from(change))
    made: set[str] = set()
    for change in changes:
        new, velocity = add_deltas(store, change)
        for digest in _begins_from(change):
            begun[digest] -= 1
            if digest in made and not begun[digest]:
                store.delete(digest)
                made.discard(digest)
        made |= {new.digest} | ({velocity} if velocity is not None else set())
        yield new.digest, velocity


def _begins_from(change: Change) -> list[str]:
    return [change.block.digest] + ([change.velocity] if change.velocity is not None else [])
