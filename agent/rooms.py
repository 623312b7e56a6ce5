"""The rooms of the agent's directory that a training process is let into, and how it is started."""

import shutil
import sys
from pathlib import Path

from fedcybgd.agent.sandbox.walls import Walls
from fedcybgd.agent.settings import Config, Home

ISOLATED = [sys.executable, "-P", "-m"]
"""Python without the folder that it is started in: modules come from where they were installed."""
BEYOND = 1 << 30
"""Bytes that a file may have beyond twice what the cache may take: what goes in may double on its way."""


def walls_of(home: Home, config: Config) -> Walls:
    """Rows that some run may use are read, shards and deltas are made, nothing else of this account is there."""
    lent = [data for data in config.data.values() if data.runs]
    rows = sorted({home.data_path(data) for data in lent} | {path for data in lent if (path := home.images_path(data)) is not None})
    return Walls(
        work=home.work, read=[home.residuals, *rows], write=[home.work, home.cache, home.outbox],
        largest_file=2 * int(config.limits.disk_gb * 1e9) + BEYOND, local_sockets=config.device.kind != "cpu",
    )  # fmt: skip


def asking(home: Home) -> Walls:
    """For a process that only answers a question: it has its own folder, and none of the rows. A daemon's process may run beside it."""
    place = home.path / "asking"
    return Walls(work=place, read=[], write=[place], largest_file=BEYOND, local_sockets=False)


def prepare(walls: Walls) -> None:
    """Make the rooms; what a process that was killed left in its own is thrown away."""
    shutil.rmtree(walls.work, ignore_errors=True)
    for room in (*walls.write, walls.work):
        room.mkdir(parents=True, exist_ok=True, mode=0o700)


def identity(path: Path) -> tuple[int, int] | None:
    """Of the file itself, whatever its name; a folder is taken as it comes."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
