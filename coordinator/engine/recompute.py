"""Makes the versions of a block again, one after another, as they were made the first time."""

from collections import Counter
from collections.abc import Iterator, Sequence

from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.storage import EngineStore


def recompute(store: EngineStore, changes: Sequence[Change]) -> Iterator[str]:
    """Of each change, the digest of what comes of it. A change may begin from what an earlier one has made: that is in the store until then.

    Memory holds some rows of a tensor, the store as many versions of the block as are still begun from.
    """
    begun = Counter(change.block.digest for change in changes)
    made: set[str] = set()
    for change in changes:
        new = add_deltas(store, change).digest
        begun[change.block.digest] -= 1
        if change.block.digest in made and not begun[change.block.digest]:
            store.delete(change.block.digest)
            made.discard(change.block.digest)
        made.add(new)
        yield new
