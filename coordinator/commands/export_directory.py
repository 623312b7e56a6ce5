"""The directory that an export goes to: whose it is, so that no run's model is written over another's by mistake."""

import json
from pathlib import Path
from typing import Any

from fedcybgd.coordinator.operator import OperatorError
from fedcybgd.shared.files.paths import inside

CARD = "fedcybgd.json"
"""Says which run made a directory; transformers does not look at it"""


def claim(directory: Path, run: dict[str, Any], force: bool) -> None:
    """Take a directory for a run's exports. Raises `OperatorError` where it holds something else and `force` is not given."""
    try:
        if directory.exists() and not force and any(directory.iterdir()) and _owner(directory).get("run_id") != run["id"]:
            owner = _owner(directory).get("run")
            holds = f"holds the model of run {owner}" if owner else "is not empty"
            raise OperatorError(f"{directory} {holds}; choose another directory, or give --force to write over it")
        directory.mkdir(parents=True, exist_ok=True)
        write_card(directory, run, None, [])
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror or error}; choose another directory") from error


def write_card(directory: Path, run: dict[str, Any], after_rounds: int | None, files: list[dict[str, Any]]) -> None:
    """`after_rounds` is None while the files are still being fetched."""
    card = {
        "run": run["name"], "run_id": run["id"], "model": run["model"], "after_rounds": after_rounds,
        "files": {file["name"]: file["digest"] for file in files},
    }  # fmt: skip
    inside(directory, CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _owner(directory: Path) -> dict[str, Any]:
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}
