"""What a lane has its jobs done by."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol


class Engine(Protocol):
    """Does one job after another, apart from the web process."""

    def submit(self, kind: str, payload: dict[str, Any]) -> Future[dict[str, Any]]:
        """The job's result, or what it raised; `BrokenExecutor`, here or from the future, when the engine has died."""
        ...

    def close(self) -> None:
        """End at once, whatever it is at."""
        ...


NewEngine = Callable[[], Engine]
