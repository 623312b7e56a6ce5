"""What the programs have in common that train by another framework and by this system: `benchmarks.flower`, `benchmarks.nvflare`.

MiniLM (22.7 M parameters), all of it trained, on rows of Banking77 (77 labels; they come with the project): clients, rounds and steps as the options
say, real processes on one machine, each with one thread. Both sides average whole models in float32 (`method: whole`, nothing compressed); a third arm
is this system as `fedcoord init` would set it up, blocks in a wave. A small relay between the sides counts the bytes; memory is the proportional set
size (PSS) of the server and its children, at its highest. Time is from a model and a job on the disk to the end of the run, with the processes up.
`--fault server` kills the server and its children with SIGKILL in the second round and starts it again on what it has on the disk five seconds later,
`--fault client` does so with one client.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil

from benchmarks import label_skew
from benchmarks.banking77 import LABELS, minilm
from benchmarks.report import arguments
from benchmarks.system import ENVIRONMENT
from benchmarks.watched import Relay, Watch, free, kill

AWAY_S = 5.0
ASKED_EVERY_S = 5.0
"""How often a run is asked whether it has ended; the commands of a framework are processes of their own, and take some of the machine."""
TRAINING = Path(__file__).parent / "flower_app" / "intents" / "training.py"
"""What clients of every framework do with their model."""


def write_rows(folder: Path, clients: int) -> list[Path]:
    label_skew.AGENTS = clients
    paths, _ = label_skew.write_rows(folder, "equal", 0, 1500, LABELS)
    (folder / "model").symlink_to(minilm())
    return paths


# ---- another framework


class Framework(ABC):
    """A server and clients of another framework in a folder, and one run of theirs. Its processes are gone after it."""

    name: ClassVar[str]
    needs: ClassVar[str]
    """The packages of the environment that its programs are of."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.data = folder, options, folder / "data"
        self.port = free()
        self.relay = Relay(self.port)
        self.environment = {**os.environ, **ENVIRONMENT, "HOME": str(folder), "PATH": f"{options.programs}:{os.environ['PATH']}"}
        self.environment.pop("PYTHONPATH", None)
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        write_rows(self.data, options.clients)
        self.prepare()

    def start(self, name: str, *words: str | Path) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._started[name] = subprocess.Popen(words, stdout=log, stderr=log, env=self.environment, cwd=self.folder)

    def ask(self, *words: str | Path, check: bool = True) -> str:
        """What one of its commands prints."""
        done = subprocess.run(words, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=300, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def pid(self, name: str) -> int:
        return self._started[name].pid

    def end(self) -> None:
        for process in self._started.values():
            with contextlib.suppress(psutil.Error):
                kill(process.pid)
            process.wait()

    def round_of(self) -> int:
        """The last one that a client has begun, counted from 1."""
        path = self.data / "trained.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((int(line.split()[3]) for line in lines if " begins " in line), default=0)

    @abstractmethod
    def prepare(self) -> None:
        """Write what its processes and its job need."""

    @abstractmethod
    def server(self) -> None:
        """Start it, called `server`, and wait until it listens."""

    @abstractmethod
    def client(self, number: int) -> None:
        """Start one, called `client-N`, which speaks to the relay."""

    @abstractmethod
    def wait_for_clients(self) -> None:
        """Return once the server knows them all."""

    @abstractmethod
    def submit(self) -> str:
        """The id of the run that begins now."""

    @abstractmethod
    def state(self, run: str) -> str:
        """Of the run: `completed`, another word if it has ended otherwise, and nothing while it goes on or nobody answers."""


def theirs(kind: type[Framework], folder: Path, options: argparse.Namespace, fault: str | None) -> dict[str, float]:
    federation = kind(folder, options)
    try:
        federation.server()
        for number in range(options.clients):
            federation.client(number)
        federation.wait_for_clients()
        clients = [f"client-{number}" for number in range(options.clients)]
        with Watch(lambda: [federation.pid("server")]) as watch, Watch(lambda: map(federation.pid, clients)) as others:
            began = killed = time.monotonic()
            run = federation.submit()
            if fault is not None:
                until(lambda: federation.round_of() >= 2, options.limit, "the second round")
                killed = time.monotonic()
                kill(federation.pid("server" if fault == "server" else "client-0"))
                time.sleep(AWAY_S)
                federation.server() if fault == "server" else federation.client(0)
            state = ""

            def going() -> bool:
                nonlocal state
                state = federation.state(run)
                return not state

            ended = wait_while(going, options.limit, ASKED_EVERY_S)
            result = {"wall_s": time.monotonic() - began}
            if fault is not None:
                result["after_kill_s"] = time.monotonic() - killed if ended else float(options.limit)
        print(f"  {kind.name}{'' if fault is None else f', {fault} killed'}: {state or 'not at its end'}", flush=True)
        return result | {"finished": float(state == "completed")} | figures(federation.relay, watch, others)
    finally:
        federation.end()
        if options.keep is not None:
            shutil.copytree(folder, options.keep, dirs_exist_ok=True, symlinks=True)


# ---- this system


def ours(folder: Path, options: argparse.Namespace, method: str, fault: str | None = None) -> dict[str, float]:
    from fedcybgd import Agent, Coordinator

    paths = write_rows(folder / "data", options.clients)
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(Coordinator.local(folder / "coordinator", log=folder / "server.log", environment=ENVIRONMENT))
        relay = Relay(int(coordinator.url.rpartition(":")[2]))
        agents = [
            stack.enter_context(
                Agent.local(
                    f"http://127.0.0.1:{relay.port}", coordinator.token(), f"client-{number}", data=path, runs=["*"],
                    home=folder / f"client-{number}", settings={"device": {"threads": 1}}, log=folder / f"client-{number}.log", environment=ENVIRONMENT,
                )
            )
            for number, path in enumerate(paths)
        ]  # fmt: skip
        client = coordinator.client
        with Watch(lambda: [coordinator.pid]) as watch, Watch(lambda: [agent.pid for agent in agents]) as others:
            began = time.monotonic()
            client.models.add(minilm(), "minilm")
            run = client.runs.create(spec_of(method, options)).id
            client.runs.start(run)
            if fault is not None:
                until(lambda: client.runs.get(run).rounds_done >= 1, options.limit, "the second round")
                time.sleep(2)
                killed = time.monotonic()
                victim: Coordinator | Agent = coordinator if fault == "server" else agents[0]
                kill(victim.pid)
                victim.kill()
                time.sleep(AWAY_S)
                victim.start()
            finished = wait_while(lambda: coordinator.client.runs.get(run).state not in ("completed", "failed"), options.limit)
            result = {"wall_s": time.monotonic() - began}
            if fault is not None:
                result["after_kill_s"] = time.monotonic() - killed if finished else float(options.limit)
        view = coordinator.client.runs.get(run)
        result["finished"] = float(view.state == "completed")
        print(f"  fedcybgd, {method}{'' if fault is None else f', {fault} killed'}: {view.state}", flush=True)
        return result | figures(relay, watch, others)


def spec_of(method: str, options: argparse.Namespace) -> Mapping[str, Any]:
    """So many rounds of every client; a cycle of blocks is as many visits as the model has layers."""
    train = {"steps": options.steps, "batch_size": 16, "learning_rate": 2e-4, "label_skew": "none"}
    base: dict[str, Any] = {
        "name": "compared", "model": "minilm", "task": {"kind": "text-classification", "labels": LABELS, "max_length": 64}, "train": train,
    }  # fmt: skip
    if method == "whole":
        schedule = {"cycles": options.rounds, "blocks": ["all"], "always": ["head"]}
        return base | {"method": "whole", "schedule": schedule, "compression": {"policy": "none"}, "delta": {"codec": "float32"}}
    schedule = {
        "cycles": options.rounds,
        "blocks": ["layers"],
        "always": ["pooler", "head"],
        "wave": min(3, options.clients),
        "damping": 0.5,
    }
    return base | {"schedule": schedule, "compression": {"policy": "int8"}, "delta": {"codec": "int8"}}


# ---- both


def figures(relay: Relay, server: Watch, clients: Watch) -> dict[str, float]:
    seen = {"server_peak_mb": server.peak / 1e6, "server_cpu_s": server.cpu_s, "clients_cpu_s": clients.cpu_s}
    return {"down_mb": relay.down / 1e6, "up_mb": relay.up / 1e6} | seen


def until(there: Callable[[], bool], most_s: float, what: str) -> None:
    if not wait_while(lambda: not there(), most_s):
        raise SystemExit(f"{what} did not come within {most_s:.0f} s")


def wait_while(going: Callable[[], bool], most_s: float, every_s: float = 1) -> bool:
    """Whether it has ended within so many seconds."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # who was killed does not answer for a while
            if not going():
                return True
        time.sleep(every_s)
    return False


def arms(kind: type[Framework], options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], dict[str, float]]]]:
    for fault in options.fault or [None]:
        named = "" if fault is None else f", {fault} killed"
        yield f"{kind.name}{named}", lambda folder, fault=fault: theirs(kind, folder, options, fault)  # type: ignore[misc]
        yield f"whole models{named}", lambda folder, fault=fault: ours(folder, options, "whole", fault)  # type: ignore[misc]
        if fault is None:
            yield "blocks", lambda folder: ours(folder, options, "blocks")


def compare(kind: type[Framework], what: str) -> None:
    """The program of one framework; `what` is its docstring."""
    name = kind.name.lower()
    parser = arguments(what.splitlines()[0])
    parser.add_argument(f"--{name}", dest="programs", type=Path, required=True, help=f"bin directory of an environment with {kind.needs}")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of a client in a round")
    parser.add_argument(
        "--fault", choices=("server", "client"), action="append", help="kill it in the second round, instead of a run without"
    )
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a run that has not ended counts as lost")
    parser.add_argument("--only", help="only arms with this in their name")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the files of the other framework there: its logs")
    options = parser.parse_args()
    options.programs = options.programs.absolute()
    signal.signal(signal.SIGTERM, lambda *_: exit(1))
    found: dict[str, dict[str, float]] = {}
    for arm, run in arms(kind, options):
        if options.only is None or options.only in arm:
            with tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True) as folder:
                found[arm] = run(Path(folder))
            print(f"{arm}: {found[arm]}; load of the machine {os.getloadavg()[0]:.1f}", flush=True)
    report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def report(found: Mapping[str, Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    print(f"\n{'':32} {' '.join(f'{name:>15}' for name in names)}")
    first = next(iter(found.values()), {})
    for arm, values in found.items():
        print(f"{arm:32} {' '.join(f'{values[name]:15.1f}' if name in values else f'{chr(8211):>15}' for name in names)}")
    for arm, values in list(found.items())[1:]:
        shown = {name: values[name] / value for name, value in first.items() if value and name in values and name != "finished"}
        print(f"{arm}, of {next(iter(found))}: " + ", ".join(f"{name} × {ratio:.2f}" for name, ratio in shown.items()))
