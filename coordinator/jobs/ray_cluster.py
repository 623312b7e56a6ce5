"""The Ray cluster that FEDCOORD_ENGINE names, through Ray's client; Ray is imported only here, and only then. It finds a place for a task, and no more."""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.needs import Needs, Node, has_place, needs_of, within
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.jobs.engine import EngineAway
from fedcybgd.coordinator.jobs.ray_node import DONE, NAMESPACE, PACKAGE, UNFIT, Answer, Request, shipped
from fedcybgd.coordinator.storage import Place, mark, open_place

log = logging.getLogger("fedcoord.ray")
PROBED_WITHIN_S = 120
"""A node may have to start its first process for it."""
TRIES, PAUSE_S = 4, 5.0
LONGEST_LINE = 400
CONNECTING = threading.Lock()
"""Ray has one connection a process."""


class RayUnusable(CoordinatorError):
    """The cluster cannot be used as it is named: a coordinator does not start on it."""

    code = "ray_unusable"


class RayNodeUnfit(CoordinatorError):
    """A node of the cluster has not this program, or does not see the blobs."""

    code = "ray_node_unfit"


def address_of(url: str) -> str:
    """The URL of a cluster, if it is one."""
    if (found := re.fullmatch(r"ray://([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", url)) and 0 < int(found[2]) < 65536:
        return url
    raise RayUnusable(
        "FEDCOORD_ENGINE is ray://HOST:10001, the head of a Ray cluster and the port of its client server, and nothing else; "
        "one on this machine is started by `ray start --head`, and is ray://127.0.0.1:10001"
    )


def imported() -> Any:
    """The package `ray`. It starts no cluster by itself, as it would where a connection was lost."""
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # is read when it is imported
    try:
        import ray
        import ray.util.client
    except ImportError as error:
        raise RayUnusable(
            f"FEDCOORD_ENGINE names a Ray cluster, and a Python package is missing ({error}): pip install '.[ray]'"
        ) from error
    return ray


class ClusterTask:
    def __init__(self, ray: Any, ref: Any, token: str, has_place: Callable[[], bool]) -> None:
        self._ray, self._ref, self._token, self._has_place = ray, ref, token, has_place
        self.answer: Future[Answer] = ref.future()

    def used(self) -> float | None:
        from ray.experimental import internal_kv

        try:
            found = internal_kv._internal_kv_get(self._token.encode(), namespace=NAMESPACE.encode())
        except Exception as error:
            raise EngineAway(f"the Ray cluster is away: {_line(error)}") from error
        return None if found is None else float(found)

    def has_place(self) -> bool:
        return self._has_place()

    def end(self) -> None:
        from ray.experimental import internal_kv

        with suppress(Exception):
            self._ray.cancel(self._ref, force=True)
        with suppress(Exception):
            internal_kv._internal_kv_del(self._token.encode(), namespace=NAMESPACE.encode())


class RayCluster:
    def __init__(self, url: str, place: Place, threads: int, device: str) -> None:
        """Nothing is asked of it before `check`. `threads` and `device` as for an engine on this machine."""
        self._url, self._ray = address_of(url), imported()
        if device not in ("cpu", "cuda"):
            raise RayUnusable(f"FEDCOORD_ENGINE_DEVICE is {device}, and which card it is Ray chooses: say cuda, or cpu")
        self._threads, self._device, self._place = threads, device, place
        self._mark = ""
        self._function: Any = None
        self._made_for: Any = None
        """the connection that the function was sent over"""

    def check(self) -> None:
        """Connect, and have every node say whether it can do jobs. Raises `RayUnusable`, `RayNodeUnfit`."""
        open_place(self._place)
        self._mark = mark.leave(self._place)
        try:
            self._connect()
            nodes = self._nodes()
            tasks = [self._look(node) for node in nodes]
        except EngineAway as error:
            raise RayUnusable(f"FEDCOORD_ENGINE: {error}") from error
        if not nodes:
            raise RayUnusable(f"no node of the Ray cluster {self._url} has a processor for jobs (num-cpus)")
        for task in tasks:
            try:
                result_of(task.answer, PROBED_WITHIN_S)
            except (EngineAway, RuntimeError, TimeoutError) as error:
                why = str(error) or "it takes too long"
                raise RayUnusable(f"a node of the Ray cluster {self._url} does not do what it is asked: {why}") from error
            finally:
                task.end()
        log.info("jobs are done by the Ray cluster %s: %s", self._url, ", ".join(_words(nodes)))

    def begin(self, kind: str, payload: BaseModel) -> ClusterTask:
        self._connect()
        needs = within(needs_of(kind, payload, self._threads, self._device != "cpu"), self._nodes())
        if needs is None:
            raise EngineAway(f"the Ray cluster {self._url} has no node with a processor")
        threads = min(self._threads, needs.cores)
        device = self._device if needs.card else "cpu"
        request = Request(self._place, self._mark, kind, payload.model_dump_json(), needs.cores, threads, device)
        return self._begin(kind, request, lambda: has_place(needs, self._nodes()), **_asked(needs))

    def _look(self, node: Node) -> ClusterTask:
        """Whether a node sees the blobs, and has this program."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node.name, soft=False)
        return self._begin("look", Request(self._place, self._mark), lambda: True, num_cpus=0, scheduling_strategy=there)

    def _begin(self, name: str, request: Request, has_place: Callable[[], bool], **asked: Any) -> ClusterTask:
        token = f"job-{secrets.token_hex(16)}"
        try:
            ref = self._function.options(name=f"fedcoord {name}", **asked).remote(version(PACKAGE), token, request.plain)
            return ClusterTask(self._ray, ref, token, has_place)
        except Exception as error:
            raise self._away(error) from error

    def _connect(self) -> None:
        client = self._ray.util.client.ray
        with CONNECTING:
            try:
                if not client.is_connected():
                    self._open()
                if self._made_for is not (connection := client.get_context().client_worker):
                    self._function, self._made_for = self._ray.remote(max_retries=0)(shipped()), connection
            except Exception as error:
                raise self._away(error) from error

    def _open(self) -> None:
        for left in reversed(range(TRIES)):
            self._ray.shutdown()  # what is left of a connection that was lost
            try:
                self._ray.init(self._url, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionAbortedError:  # by a cluster that has only just been started itself
                if not left:
                    raise
                time.sleep(PAUSE_S)
            else:
                return

    def _nodes(self) -> list[Node]:
        try:
            found = [(node["NodeID"], node["Resources"]) for node in self._ray.nodes() if node["Alive"]]
        except Exception as error:
            raise self._away(error) from error
        nodes = [Node(name, int(has.get("CPU", 0)), int(has.get("memory", 0)), int(has.get("GPU", 0))) for name, has in found]
        return [node for node in nodes if node.cores >= 1]

    def _away(self, error: Exception) -> EngineAway:
        if isinstance(error, EngineAway):
            return error
        return EngineAway(f"the Ray cluster {self._url} cannot be used: {_line(error)}")


def result_of(answer: Future[Answer], timeout: float | None = None) -> BaseModel | None:
    """What a node made of a task, or raised; `BrokenExecutor` where its process or machine died, `EngineAway` where the cluster did."""
    try:
        word, said = answer.result(timeout)
    except Exception as error:
        raise _understood(error) from error
    if word == UNFIT:
        raise RayNodeUnfit(str(said))
    if word == DONE:
        assert said is None or isinstance(said, BaseModel)
        return said
    raise said if isinstance(said, Exception) else RuntimeError(f"a node answered {word!r}")


def _understood(error: Exception) -> Exception:
    if isinstance(error, BrokenExecutor | TimeoutError):
        return error
    if isinstance(error, ConnectionError):
        return EngineAway(f"the Ray cluster is away: {_line(error)}")
    exceptions = imported().exceptions
    if isinstance(error, exceptions.RayError) and not isinstance(error, exceptions.RayTaskError):
        return BrokenExecutor(_line(error))
    if "grpc" in type(error).__module__:
        return EngineAway(f"the Ray cluster is away: {_line(error)}")
    return RuntimeError(f"a task failed beside its job: {_line(error)}")


def _line(error: Exception) -> str:
    """What it says for people, in one line: of a trace from elsewhere the end."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line] or [type(error).__name__]
    return (lines[-1] if "ray::" in lines[0] or "Traceback" in str(error) else " ".join(lines))[:LONGEST_LINE]


def _asked(needs: Needs) -> dict[str, Any]:
    return {"num_cpus": needs.cores, "memory": needs.memory, "num_gpus": int(needs.card)}


def _words(nodes: Iterable[Node]) -> list[str]:
    return [f"{node.cores} cores, {node.memory / 1e9:.0f} GB" + (f", {node.cards} cards" if node.cards else "") for node in nodes]
