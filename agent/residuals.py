"""What the codec of a delta left out, kept until this agent trains the block again (error feedback).

A residual belongs to a delta and is kept before that is sent. Which one counts the coordinator says with the next visit: that of the delta
which was added last. So it makes no difference when this agent died, whether a delta was rejected, or what became of a run meanwhile.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedcybgd.shared.contract.assignments import AddedDelta, LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.files.paths import folder_name, inside
from fedcybgd.shared.files.volumes import move, settle

log = logging.getLogger("fedagent.residuals")
SUFFIX = ".safetensors"
KEPT = 4
"""Of a block at the most: what counts, and those of deltas that nothing has been heard of yet."""


class Residuals:
    """One file for each (coordinator, run, block, assignment, delta), with its own digest in its name."""

    def __init__(self, root: Path, coordinator: str = "") -> None:
        self._root = root
        self._coordinator = coordinator
        self._wanted: set[Path] = set()

    def of(self, run_id: str, carried: Sequence[AddedDelta]) -> dict[str, str]:
        """block → file, for the blocks of which there is one of this very delta, whole. They are not deleted until the next call."""
        found = {delta.block: path for delta in carried if (path := self._whole(run_id, delta)) is not None}
        self._wanted = set(found.values())
        return {block: str(path) for block, path in found.items()}

    def keep(self, assignment: LeasedAssignment, digest: str, left: Path) -> None:
        """Move what a delta left out here, a file for each block in the folder `left`. It counts if the coordinator says so."""
        made = f"{assignment.assignment_id}.{digest}."
        for path in sorted(left.glob(f"*{SUFFIX}")):
            folder = self._folder(assignment.run_id, path.name.removesuffix(SUFFIX))
            folder.mkdir(parents=True, exist_ok=True)
            place = inside(folder, f"{made}{digest_of_file(path)}{SUFFIX}")
            move(path, place)
            settle(folder)
            self._forget(folder, (made, *(_name(delta) for delta in assignment.carried)))

    def size(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def shrink(self, allowed: int) -> int:
        """Delete what was used longest ago until at most so many bytes are left, but nothing that the visit at hand needs; what is left."""
        files = sorted((path.stat().st_mtime, path, path.stat().st_size) for path in self._files())
        left = sum(size for _, _, size in files)
        for _, path, size in files:
            if left <= allowed:
                break
            if path not in self._wanted:
                path.unlink(missing_ok=True)
                left -= size
        return left

    def _whole(self, run_id: str, delta: AddedDelta) -> Path | None:
        for path in self._folder(run_id, delta.block).glob(f"{_name(delta)}*{SUFFIX}"):
            if path.name == f"{_name(delta)}{digest_of_file(path)}{SUFFIX}":
                os.utime(path)
                return path
            log.warning("%s is damaged and thrown away: what the last delta of %s left out is lost", path, delta.block)
            path.unlink(missing_ok=True)
        return None

    def _forget(self, folder: Path, needed: tuple[str, ...]) -> None:
        """Delete all but the newest ones."""
        newest = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in newest[KEPT:]:
            if not path.name.startswith(needed):
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        return (path for path in self._root.rglob("*") if path.is_file())

    def _folder(self, run_id: str, block: str) -> Path:
        return inside(inside(self._root, folder_name(self._coordinator, run_id)), block)


def _name(delta: AddedDelta) -> str:
    return f"{delta.assignment_id}.{delta.digest}."
