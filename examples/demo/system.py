"""Starts a coordinator and agents as a person would, and ends them whatever happens."""

import os
from pathlib import Path

import psutil

from fedcybgd.local.federation import Federation

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class DemoFailed(Exception):
    """The demo did not come to its end; the message says why."""


class System(Federation):
    """Use as a context manager: whatever happens, no process is left behind."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ENVIRONMENT)

    def memory_of_web_process(self) -> int:
        """Resident bytes of the coordinator's web process."""
        return int(psutil.Process(self.coordinator.pid).memory_info().rss)
