"""What the codec of a delta left out, kept until this agent trains the block again (error feedback)."""

from collections.abc import Iterable
from pathlib import Path

from fedcybgd.shared.files.paths import folder_name, inside
from fedcybgd.shared.files.volumes import move


class Residuals:
    """One file for each (coordinator, run, block)."""

    def __init__(self, root: Path, coordinator: str = "") -> None:
        self._root = root
        self._coordinator = coordinator

    def of(self, run_id: str, blocks: Iterable[str]) -> dict[str, str]:
        """block → file, for the blocks that there is one of."""
        paths = {block: inside(self._folder(run_id), f"{block}.safetensors") for block in blocks}
        return {block: str(path) for block, path in paths.items() if path.is_file()}

    def keep(self, run_id: str, folder: Path) -> None:
        """Move the files in `folder` here: they are what counts from now on."""
        self._folder(run_id).mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.safetensors"):
            move(path, inside(self._folder(run_id), path.name))

    def _folder(self, run_id: str) -> Path:
        return inside(self._root, folder_name(self._coordinator, run_id))
