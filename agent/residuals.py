"""What the codec of a delta left out, kept until this agent trains the block again (error feedback)."""

from collections.abc import Iterable
from pathlib import Path


class Residuals:
    """One file for each (run, block)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, run_id: str, blocks: Iterable[str]) -> dict[str, str]:
        """block → file, for the blocks that there is one of."""
        paths = {block: self._root / run_id / f"{block}.safetensors" for block in blocks}
        return {block: str(path) for block, path in paths.items() if path.is_file()}

    def keep(self, run_id: str, folder: Path) -> None:
        """Move the files in `folder` here: they are what counts from now on."""
        (self._root / run_id).mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.safetensors"):
            path.replace(self._root / run_id / path.name)
