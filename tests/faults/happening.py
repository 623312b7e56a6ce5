"""Makes a fault happen to a fleet, and puts right what a person would put right."""

import contextlib
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from fedcybgd import Agent
from fedcybgd.local.errors import LocalError
from tests.faults.fleet import COORDINATOR, Fleet, copy_home, environment
from tests.faults.plan import STORAGE, Fault
from tests.faults.proxy import KINDS, Rule
from tests.support.postgres import PostgresServer


class Happening:
    """The faults of one run, one after another or beside each other; `taken` has the bytes of the blobs that were spoilt."""

    def __init__(self, fleet: Fleet, run_id: str, seed: int, postgres: PostgresServer | None = None) -> None:
        self._fleet, self._run_id, self._postgres = fleet, run_id, postgres
        self._chosen = random.Random(seed)
        self.taken: dict[str, bytes] = {}
        self._one_database, self._one_storage = threading.Lock(), threading.Lock()

    def do(self, fault: Fault) -> None:
        """Returns when the fault is over. What befalls the coordinator befalls any one of several."""
        if fault.target == COORDINATOR:
            fault = replace(fault, target=self._chosen.choice(self._fleet.names))
        if fault.kind in KINDS:
            self._wire(fault)
            return
        verb, _, what = fault.kind.partition(" ")
        match verb:
            case "kill" | "freeze" if what == "database":
                self._database(fault)
            case "kill" | "freeze" if what == STORAGE:
                self._storage(fault)
            case "point":
                self._fleet.arm(fault.how)
            case "kill":
                self._signal(fault, what, lambda process: process.kill())
            case "stop":
                self._signal(fault, what, lambda process: process.suspend())
                time.sleep(fault.seconds)
                self._signal(fault, what, lambda process: process.resume())
            case "full":
                with self._noted(f"full.{fault.target}", ""):
                    time.sleep(fault.seconds)
            case "clock":
                with self._noted(f"clock.{fault.target}", str(fault.amount)):
                    time.sleep(fault.seconds)
            case "few":
                self._few_files(fault)
            case "blob":
                self._blob(fault)
            case "cached":
                self._spoil(sorted((self._fleet.folder / fault.target / "cache").glob("*")), fault.how)
            case "copied":
                self._spoil(sorted((self._fleet.folder / fault.target / "cache").glob("[0-9a-f][0-9a-f]/*")), fault.how)
            case "replica":
                self._replica(fault)
            case _:
                raise ValueError(fault.kind)

    def put_back(self) -> None:
        """As an operator who has a backup."""
        for digest, data in self.taken.items():
            self._fleet.blobs.write(digest, data)
        self.taken.clear()

    def _wire(self, fault: Fault) -> None:
        rule = Rule(fault.kind, fault.seconds, fault.amount)
        if fault.kind in ("cut_up", "cut_down", "drop_answer", "duplicate", "reset"):
            rule.requests = self._chosen.choice((1, 3, 10))
        (self._fleet.storage.proxy if self._fleet.storage and fault.target == STORAGE else self._fleet.proxies[int(fault.target[-1])]).set(
            rule
        )
        while not rule.over():
            time.sleep(0.05)

    def _signal(self, fault: Fault, role: str, send: Callable[[psutil.Process], None]) -> None:
        for process in self._fleet.find(role, fault.target):
            with contextlib.suppress(psutil.Error):
                send(process)

    @contextlib.contextmanager
    def _noted(self, name: str, text: str) -> Iterator[None]:
        """A file that the processes look at; its folder is theirs alone."""
        note = self._fleet.faults / name
        aside = note.with_name(note.name + ".new")
        aside.write_text(text)
        aside.replace(note)
        yield
        note.unlink(missing_ok=True)

    def _few_files(self, fault: Fault) -> None:
        """Not one file more than are open now."""
        role = "web" if fault.target in self._fleet.names else "daemon"
        before: dict[psutil.Process, tuple[int, int]] = {}
        for process in self._fleet.find(role, fault.target):
            with contextlib.suppress(psutil.Error):
                before[process] = process.rlimit(resource.RLIMIT_NOFILE)  # type: ignore[assignment]
                process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), before[process][1]))
        time.sleep(fault.seconds)
        for process, limits in before.items():
            with contextlib.suppress(psutil.Error):
                process.rlimit(resource.RLIMIT_NOFILE, limits)

    def _blob(self, fault: Fault) -> None:
        """One of the blobs that the run stands on."""
        view = self._fleet.operator.patiently(lambda: self._fleet.view(self._run_id), every=0.2)  # another fault may be under way
        blobs, digests = self._fleet.blobs, sorted({str(b["digest"]) for b in view["blocks"]})
        self._chosen.shuffle(digests)
        for digest in digests:
            try:
                data = blobs.read(digest)
            except FileNotFoundError:
                continue
            self.taken.setdefault(digest, data)
            blobs.delete(digest) if fault.how == "missing" else blobs.write(digest, self._spoilt(data, fault.how))
            return

    def _spoil(self, files: list[Path], how: str) -> None:
        files = [path for path in files if path.is_file() and path.suffix != ".part"]
        with contextlib.suppress(FileNotFoundError, IndexError):
            path = self._chosen.choice(files)
            data = path.read_bytes()
            path.unlink() if how == "missing" else path.write_bytes(self._spoilt(data, how))

    def _spoilt(self, data: bytes, how: str) -> bytes:
        place = self._chosen.randrange(max(1, len(data)))
        return {
            "flipped": data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :] if data else b"\1",
            "empty": b"",
            "torn": data[:place],
        }[how]

    def _replica(self, fault: Fault) -> None:
        """The agent a second time, with the same key, from a copy of its home."""
        home = copy_home(self._fleet.agents[int(fault.target[-1])], self._fleet.folder / f"replica-{fault.target}-{time.monotonic_ns()}")
        until = time.monotonic() + fault.seconds
        with contextlib.suppress(LocalError):
            double = Agent.at(home, environment=environment(self._fleet.folder, "replica"), timeout_s=fault.seconds)
            time.sleep(max(0.0, until - time.monotonic()))
            double.kill()

    def _database(self, fault: Fault) -> None:
        assert self._postgres is not None
        act = self._postgres.killed if fault.kind == "kill database" else self._postgres.frozen
        with self._one_database, act():  # what is dead cannot be frozen
            time.sleep(fault.seconds)

    def _storage(self, fault: Fault) -> None:
        assert self._fleet.storage is not None
        server = self._fleet.storage.server
        with self._one_storage, server.killed() if fault.kind == "kill storage" else server.frozen():
            time.sleep(fault.seconds)
