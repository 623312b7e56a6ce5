"""What a node of a Ray cluster does with a job. Nothing that is sent there is secret: keys of the storage are those of the node's own environment."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.jobs.registry import JOBS
from fedcybgd.coordinator.places import place_of
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import Place, mark, open_place
from fedcybgd.shared.contract.errors import FedError

log = logging.getLogger("fedcoord.engine")
PACKAGE = "fedcybgd"
DONE, FAILED, UNFIT = "done", "failed", "unfit"
NAMESPACE = "fedcoord"
TELL_EVERY_S = 1.0
NOTICED_S = 0.01
"""Of the processor in that time: less may be Ray's own."""
Answer = tuple[str, object]
"""One of the three words above, and the result, the error, or what the node lacks"""
Plain = dict[str, str | int | None]
"""What anybody can read, of whatever version"""


@dataclass(frozen=True)
class Request:
    place: Place
    mark: str
    """of the place, as the coordinator sees it"""
    kind: str | None = None
    """None: only look whether jobs can be done here"""
    payload: str = ""
    """as JSON, in which it waited in the database too"""
    cores: int = 1
    threads: int = 1
    device: str = "cpu"

    @property
    def plain(self) -> Plain:
        return {**asdict(self), "place": None, "folder": str(self.place.folder), "url": self.place.url, "links": self.place.links}

    @classmethod
    def of(cls, plain: Plain) -> "Request":
        given: dict[str, Any] = dict(plain)
        place = Place(Path(given.pop("folder")), given.pop("url"), given.pop("links"))
        return cls(**{**given, "place": place})


def shipped() -> Callable[[str, str, Plain], Answer]:
    """What is sent to the nodes, by value: so it can say there that the package is missing."""

    def fedcoord_job(wanted: str, token: str, request: dict[str, Any]) -> tuple[str, object]:
        try:
            from fedcybgd.coordinator.jobs.ray_node import do
        except ImportError as error:
            import socket

            return "unfit", f"node {socket.gethostname()} cannot import the package fedcybgd: {error}"
        return do(wanted, token, request)

    return fedcoord_job


def do(wanted: str, token: str, request: Plain) -> Answer:
    """Do a job for a coordinator of the version `wanted`, and tell by `token` what it uses of the processor."""
    node = socket.gethostname()
    if (own := version(PACKAGE)) != wanted:
        return UNFIT, f"node {node} has {PACKAGE} {own}, and the coordinator is of {wanted}"
    with told(token):
        try:
            return _do(Request.of(request), node)
        except FedError as error:
            return FAILED, error
        except Exception as error:  # of a class that the other side may not be able to make again
            log.exception("a job failed")
            return FAILED, RuntimeError(f"{type(error).__name__}: {error}")


def _do(request: Request, node: str) -> Answer:
    place = _as_seen_here(request.place)
    if mark.seen(place) != request.mark:
        return (
            UNFIT,
            f"node {node} does not see the coordinator's blobs in {place}: every node needs that directory under the same path, or object "
            "storage (FEDCOORD_STORAGE)",
        )
    store = open_place(place)
    if request.kind is None:
        return DONE, None
    from fedcybgd.coordinator.engine import device, threads
    from fedcybgd.coordinator.engine.entries import run, warm_up

    threads.allow(request.cores)
    device.measure_on(device.CPU)
    try:
        warm_up(request.threads, request.device)
    except device.CardMissing as error:
        log.error("%s; measurements are made on the processor", error)
    payload = JOBS[JobKind(request.kind)].payload.model_validate_json(request.payload)
    return DONE, run(request.kind, payload, store)


def _as_seen_here(place: Place) -> Place:
    """Copies of what is in object storage lie in the node's own home."""
    return place if place.url is None else place_of(Settings(storage=place.url, storage_links=place.links))


@contextlib.contextmanager
def told(token: str) -> Iterator[None]:
    """That a job has begun, and every second what it has used of the processor since."""
    from ray.experimental import internal_kv

    own = threading.get_native_id()
    others = [thread for thread in _threads() if thread != own]
    over = threading.Event()

    def used() -> float:
        return time.process_time() - sum(map(_used_by, (*others, threading.get_native_id())))

    def say(seconds: float) -> None:
        internal_kv._internal_kv_put(token.encode(), f"{seconds:.2f}".encode(), overwrite=True, namespace=NAMESPACE.encode())

    def tell() -> None:
        at, counted = used(), 0.0
        while not over.wait(TELL_EVERY_S):
            before, at = at, used()
            if at - before >= NOTICED_S:
                counted += at - before
                say(counted)

    say(0.0)
    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _threads() -> list[int]:
    return [int(found.name) for found in Path("/proc/self/task").glob("*")]


def _used_by(thread: int) -> float:
    """Processor seconds of one of Ray's own threads, which work also where a job hangs; 0 once it is gone."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
