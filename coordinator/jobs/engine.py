"""What a lane has its jobs done by."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from pydantic import BaseModel

HUNG_S = 120.0
"""An engine that uses none of the processor for so long hangs: even one that waits for a slow disk uses some."""


class Engine(Protocol):
    """Does one job after another, apart from the web process."""

    def submit(self, kind: str, payload: BaseModel) -> Future[BaseModel]:
        """The job's result, or what it raised; `BrokenExecutor`, here or from the future, when the engine has died."""
        ...

    def cpu_s(self) -> float:
        """Processor seconds that it has used so far: where that stands still, so does the job."""
        ...

    def close(self) -> None:
        """End at once, whatever it is at."""
        ...


class EngineAway(ConnectionError):
    """What the engine runs on does not answer, or has no room: that passes, and is nobody's failure."""


NewEngine = Callable[[], Engine]
