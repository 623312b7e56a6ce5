"""Coordinators and agents as real processes, each agent behind a proxy of its own, started again whenever they die, as a service manager would."""

import contextlib
import mmap
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from fedcybgd import Agent, Client, Coordinator
from fedcybgd.client.errors import ClientError, Refused
from fedcybgd.local.errors import LocalError
from tests.e2e.conftest import write_rows
from tests.faults.proxy import Proxy
from tests.faults.storage import Storage, in_folder
from tests.support.balancer import Balancer
from tests.support.processes import ENVIRONMENT

BOOTSTRAP = Path(__file__).parent / "bootstrap" / "sitecustomize.py"
LONGEST_POINT = 1000
"""bytes"""
RESTART_AFTER_S = 0.2
START_WITHIN_S = 300
"""On a machine with much other work."""
LOOK_EVERY_S = 0.05
COORDINATOR = "coordinator"
PROGRAMS = "programs"
"""folder of links, by name of process: the checkout that it runs; where there is none, this one"""
LINES = 12
"""of each log"""


def environment(folder: Path, name: str) -> dict[str, str]:
    """Of a process under test: Python loads what stands in `bootstrap` first, which knows by its own place what it is to do."""
    place = folder / "faults" / f"as.{name}"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(BOOTSTRAP, place)
    path = os.pathsep.join(filter(None, [str(place), str(folder / PROGRAMS / name), os.environ.get("PYTHONPATH", "")]))
    return {**ENVIRONMENT, "PYTHONPATH": path}


class Fleet:
    def __init__(
        self, folder: Path, model: Path, agents: int = 3, database_url: str | None = None, held_out: tuple[Path, str] | None = None,
        replicas: int = 1, program: Path | None = None, storage: Storage | None = None,
    ) -> None:  # fmt: skip
        """`replicas`: coordinators, each with a home of its own, on the one PostgreSQL database of `database_url`. `program`: another checkout
        that all run. With `storage` a bucket is all that coordinators have in common, and a secret.
        """
        self.folder, self.model, self.database_url, self.storage = folder, model, database_url, storage
        self.faults.mkdir(parents=True, exist_ok=True)
        (self.faults / "seen").touch()
        (self.faults / "armed").write_bytes(bytes(LONGEST_POINT))
        with (self.faults / "armed").open("r+b") as file:
            self._armed = mmap.mmap(file.fileno(), 0)
        settings: dict[str, Any] = {"database_url": database_url} if database_url else {}
        settings |= {"threads": 8} if replicas > 1 else {}
        self.names = [COORDINATOR, *(f"{COORDINATOR}-{number}" for number in range(1, replicas))]
        """of the coordinators"""
        if program is not None:
            for name in [*self.names, *(f"agent-{number}" for number in range(agents))]:
                self.install(name, program)
        more: dict[str, str] = {}
        if storage is not None:
            shared, more = folder / COORDINATOR, storage.environment
            settings["storage"], self.blobs = storage.new_place()
            leave_secret([folder / name for name in self.names])
        else:
            shared = folder / "shared" if replicas > 1 else folder / COORDINATOR
            settings |= {"shared": shared} if replicas > 1 else {}
            self.blobs = in_folder(shared / "blobs")
        ports = [free_port() for _ in self.names]

        def start(name: str, port: int) -> Coordinator:
            return Coordinator.local(
                folder / name, port, environment=environment(folder, name) | more, timeout_s=START_WITHIN_S, **settings
            )

        first = start(self.names[0], ports[0])  # it makes the operator's key
        with ThreadPoolExecutor() as together:
            self.coordinators = [first, *together.map(start, self.names[1:], ports[1:])]
        self.coordinator = first
        self.balancer = Balancer(ports) if replicas > 1 else None
        self.client = first.client if self.balancer is None else Client(self.balancer.url, (shared / "operator.key").read_text().strip())
        self.operator = self.client.connection
        self.partitions = [write_rows(folder / f"rows-{number}.jsonl", number) for number in range(agents)]
        self.proxies: list[Proxy] = []
        self.agents: list[Agent] = []
        self._watching, self._kept_down = threading.Event(), set[str]()
        self._keepers: list[threading.Thread] = []
        self.restarts = dict.fromkeys(self.names, 0)
        self.answers_since = 0.0
        """since when the present coordinator answers, by `time.monotonic`"""
        self.restarted_in: list[float] = []
        """seconds from the death of a coordinator until it answers"""
        self.held_out = held_out
        """file of held-out rows, and its digest"""
        if held_out is not None:
            self.client.runs.upload_held_out(held_out[0])
        self.operator.post("/models", {"name": "tiny", "source": str(model)})
        for number in range(agents):
            proxy = Proxy(ports[0] if self.balancer is None else self.balancer.port)
            name = f"agent-{number}"
            self.proxies.append(proxy)
            if storage is not None:
                allow(folder / name, storage.proxy.url)
            self.agents.append(
                Agent.local(proxy.url, self.client.agents.token(expires_in_s=3600).token, name, data=self.partitions[number], runs=["*"], home=folder / name,
                            settings={"device": {"threads": 1}}, environment=environment(folder, name))
            )  # fmt: skip
            self.restarts[name] = 0
        model_view = self.operator.wait(lambda: self.operator.get("/models/tiny"), lambda m: m["state"] != "adding", limit=START_WITHIN_S)  # type: ignore[index]
        assert model_view["state"] == "ready", model_view  # type: ignore[index]
        self.operator.wait(
            lambda: self.operator.every("/agents"), lambda found: all(a["state"] == "active" for a in found), limit=START_WITHIN_S
        )  # type: ignore[index]

    # ---- life -----------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """From now on whatever dies is started again."""
        for name in self.restarts:
            thread = threading.Thread(target=self._keep, args=(name,), name=f"keeper-{name}", daemon=True)
            self._keepers.append(thread)
            thread.start()

    def install(self, name: str, program: Path) -> None:
        """Have a process run this checkout from its next start on."""
        link = self.folder / PROGRAMS / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(program)

    def all_proxies(self) -> list[Proxy]:
        return [*self.proxies, *([self.storage.proxy] if self.storage is not None else [])]

    def process(self, name: str) -> Coordinator | Agent:
        return self.coordinators[self.names.index(name)] if name in self.names else self.agents[int(name.rsplit("-", 1)[1])]

    def _keep(self, name: str) -> None:
        process = self.process(name)
        while not self._watching.wait(LOOK_EVERY_S):
            if process.running or name in self._kept_down:
                continue
            died = time.monotonic()
            self._watching.wait(RESTART_AFTER_S)
            self.restarts[name] += 1
            with contextlib.suppress(LocalError, OSError):  # killed again while it started: once more
                process.start() if isinstance(process, Coordinator) else process.start(wait=False)
                if isinstance(process, Coordinator):
                    self.answers_since = time.monotonic()
                    self.restarted_in.append(self.answers_since - died)

    @contextlib.contextmanager
    def kept_down(self, *names: str) -> Iterator[None]:
        """What of these dies meanwhile is not started again before the end."""
        self._kept_down.update(names)
        yield
        self._kept_down.difference_update(names)

    def stop(self) -> None:
        self._watching.set()
        for keeper in self._keepers:
            keeper.join(70)
        for process in [*self.agents, *self.coordinators]:
            for found in self.processes_of(process):
                with contextlib.suppress(psutil.Error):
                    found.send_signal(signal.SIGCONT)
            if process.running:
                process.kill()
        for proxy in self.proxies:
            proxy.close()
        if self.balancer is not None:
            self.balancer.close()

    @staticmethod
    def processes_of(process: Coordinator | Agent) -> list[psutil.Process]:
        try:
            first = psutil.Process(process.pid)
            return [first, *first.children(recursive=True)]
        except (psutil.Error, LocalError):
            return []

    def find(self, role: str, name: str) -> list[psutil.Process]:
        """The processes of a role: web and engine of the coordinator, daemon and trainer of an agent."""
        marks = {"engine": "multiprocessing.forkserver", "trainer": "fedcybgd.agent.trainer"}
        found = self.processes_of(self.process(name))
        if role in ("web", "daemon"):
            return found[:1]
        chosen = []
        for process in found[1:]:
            with contextlib.suppress(psutil.Error):
                if any(marks[role] in word for word in process.cmdline()):
                    chosen.append(process)
        return chosen

    # ---- what an operator does, whatever happens meanwhile ---------------------------------------------------------------

    def insist(self, act: Callable[[], Any], done: Callable[[], bool], limit: float = 180) -> None:
        """Do what may have been done already when its answer was lost."""
        until = time.monotonic() + limit
        while True:
            with contextlib.suppress(ClientError):
                if done():
                    return
                try:
                    act()
                except Refused as refused:
                    if time.monotonic() > until:
                        raise AssertionError(f"the coordinator refuses: {refused.message}") from refused
            assert time.monotonic() < until, "the operator gave up"
            time.sleep(0.1)

    def begin(self, spec: dict[str, Any]) -> str:
        """A started run; its id."""
        name = spec["name"]
        self.insist(lambda: self.operator.post("/runs", spec), lambda: self._view(name) is not None)
        self.insist(lambda: None, lambda: bool((self._view(name) or {}).get("prepared")))
        run_id = str((self._view(name) or {})["id"])
        for agent in self.agents:  # whom nobody counts on at the start has no part in the plan, and then the weights are others
            self.insist(lambda name=agent.name: self.operator.post(f"/agents/{name}/release"), lambda name=agent.name: self._is_there(name))  # type: ignore[misc]
        self.insist(lambda: self.operator.post(f"/runs/{run_id}/start"), lambda: self.view(run_id)["state"] != "draft")
        return run_id

    def _is_there(self, name: str) -> bool:
        found = next(dict(a) for a in self.operator.every("/agents") if dict(a)["name"] == name)  # type: ignore[call-overload]
        return found["state"] == "active" and found["quarantined_until"] is None

    def _view(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(self.operator.get(f"/runs/{name}"))  # type: ignore[call-overload]
        except Refused:
            return None

    def view(self, run_id: str) -> dict[str, Any]:
        return dict(self.operator.get(f"/runs/{run_id}"))  # type: ignore[call-overload]

    def last_words(self) -> list[str]:
        """The ends of all logs, for whoever reads why a run went wrong."""
        lines: list[str] = []
        for process in [*self.coordinators, *self.agents]:
            written = process.log.read_text(errors="replace").splitlines() if process.log.exists() else []
            lines += [f"-- {process.log}", *(line[:300] for line in written[-LINES:])]
        return lines

    # ---- points -------------------------------------------------------------------------------------------------------------

    @property
    def faults(self) -> Path:
        """The folder by which processes are told what is to happen to them."""
        return self.folder / "faults"

    def points(self) -> set[str]:
        """Every point that was passed so far."""
        return set((self.faults / "seen").read_text().splitlines())

    def arm(self, point: str) -> None:
        self._armed[: len(point) + 1] = point.encode() + b"\0"

    def disarm(self) -> bool:
        """Whether it was still armed: nobody has come there."""
        was, self._armed[0] = self._armed[0], 0
        return bool(was)

    def hit(self) -> bool:
        return not self._armed[0]


def leave_secret(homes: Sequence[Path]) -> None:
    """One in all of them, as an operator would before their first start."""
    secret = secrets.token_hex(32)
    for home in homes:
        home.mkdir()
        (home / "signing.secret").write_text(secret)


def allow(home: Path, storage: str) -> None:
    """Have an owner's policy that names the object storage."""
    home.mkdir()
    (home / "policy.toml").write_text(f'[coordinator]\nstorage = ["{storage}"]\n')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_home(agent: Agent, target: Path) -> Path:
    """A second home of the same agent, as from a machine that was cloned."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(agent.home, target, ignore=shutil.ignore_patterns("*.part", "agent.log"), copy_function=_copy)
    return target


def _copy(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # the agent lives, and clears its cache meanwhile
        shutil.copy2(source, target)
