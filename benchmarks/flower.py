"""The same training by Flower and by this system, real processes on one machine: `python -m benchmarks.flower --flower DIR`.

MiniLM (22.7 M parameters), all of it trained, on rows of Banking77 (77 labels; they come with the project): clients, rounds and steps as the options
say, each process with one thread. Both sides average whole models in float32 (`method: whole`, nothing compressed); a third arm is this system as
`fedcoord init` would set it up, blocks in a wave. A small proxy between the sides counts the bytes; memory is the proportional set size (PSS) of
the server and its children, at its highest. `--fault server` kills the server and its children with SIGKILL in the second round and starts it again
on its database, `--fault client` does so with one client, and starts it again five seconds later.

`--flower` is the `bin` directory of an environment with flwr (1.42 was used), torch and transformers; it is not installed with the project.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import label_skew
from benchmarks.banking77 import LABELS, minilm
from benchmarks.report import arguments
from benchmarks.system import ENVIRONMENT

APP = Path(__file__).parent / "flower_app"
AWAY_S = 5.0
EVERY_S = 0.25


@dataclass
class Proxy:
    """Passes on what comes to a port of its own, and counts it."""

    to: int
    up: int = 0
    down: int = 0
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._pass, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while some := one.recv(1 << 18):
                setattr(self, way, getattr(self, way) + len(some))
                other.sendall(some)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Watch:
    """The most memory and the processor time of a process and its children, while it is entered; `of` may change when it is started again."""

    def __init__(self, of: Callable[[], int | None]) -> None:
        self._of, self._over = of, threading.Event()
        self.peak, self._cpu = 0, dict[int, float]()

    def __enter__(self) -> "Watch":
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())

    def _look(self) -> None:
        while not self._over.wait(EVERY_S):
            with contextlib.suppress(psutil.Error):
                if (pid := self._of()) is None:
                    continue
                total = 0
                for process in tree(pid):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_full_info().pss
                        times = process.cpu_times()
                        self._cpu[process.pid] = times.user + times.system
                self.peak = max(self.peak, total)


def tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def kill(pid: int) -> None:
    """SIGKILL for it and all of its children."""
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):
            process.kill()


def write_rows(folder: Path, clients: int) -> list[Path]:
    label_skew.AGENTS = clients
    paths, _ = label_skew.write_rows(folder, "equal", 0, 1500, LABELS)
    (folder / "model").symlink_to(minilm())
    return paths


# ---- Flower


def flower(folder: Path, options: argparse.Namespace, fault: str | None) -> dict[str, float]:
    data = folder / "data"
    write_rows(data, options.clients)
    home = folder / "flwr"
    home.mkdir()
    port, ends = free(), contextlib.ExitStack()
    (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    environment = {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    environment["PATH"] = f"{options.flower}:{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *words: str) -> None:
        log = ends.enter_context((folder / f"{name}.log").open("ab"))
        started[name] = subprocess.Popen([str(options.flower / words[0]), *words[1:]], stdout=log, stderr=log, env=environment, cwd=folder)

    def server() -> None:
        words = ["--insecure", "--database", str(folder / "state.db"), "--port", str(port), "--disable-runtime-dependency-installation"]
        start("server", "flower-superlink", *words)
        until(lambda: listens(port), 60, "the SuperLink")

    def client(number: int) -> None:
        words = ["--insecure", "--superlink", f"127.0.0.1:{proxy.port}", "--port", str(free())]
        start(f"client-{number}", "flower-supernode", *words, "--node-config", f"partition-id={number}")

    proxy = Proxy(port)
    try:
        server()
        for number in range(options.clients):
            client(number)
        time.sleep(5)
        with Watch(lambda: started["server"].pid) as watch:
            began = time.monotonic()
            said = f"folder='{data}' rounds={options.rounds} steps={options.steps} clients={options.clients}"
            done = subprocess.run(
                [str(options.flower / "flwr"), "run", str(APP), "here", "--run-config", said, "--format", "json"],
                env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip
            run = str(json.loads(done.stdout[done.stdout.index("{") :])["run-id"])

            def state() -> str:
                listed = subprocess.run(
                    [str(options.flower / "flwr"), "ls", "here", "--format", "json"], env=environment, capture_output=True, text=True, timeout=120
                )  # fmt: skip
                found = re.search(rf'"run-id":\s*"?{run}"?.*?"status":\s*"([^"]+)"', listed.stdout, re.S)
                return found[1] if found else ""

            if fault is not None:
                until(lambda: " 2\n" in told(data / "trained.txt", "begins"), options.limit, "the second round")
                killed = time.monotonic()
                kill(started["server" if fault == "server" else "client-0"].pid)
                time.sleep(AWAY_S)
                server() if fault == "server" else client(0)
            ended = wait_while(lambda: not state().startswith("finished"), options.limit)
            result = {"finished": float(state() == "finished:completed"), "wall_s": time.monotonic() - began}
            if fault is not None:
                result["after_kill_s"] = time.monotonic() - killed if ended else float(options.limit)
        print(f"  flower{'' if fault is None else f', {fault} killed'}: {state() or 'no answer'}", flush=True)
        return result | figures(proxy, watch)
    finally:
        for process in started.values():
            with contextlib.suppress(psutil.Error):
                kill(process.pid)
        ends.close()


def told(path: Path, word: str) -> str:
    return "".join(f"{line}\n" for line in path.read_text().splitlines() if word in line) if path.exists() else ""


# ---- this system


def ours(folder: Path, options: argparse.Namespace, method: str, fault: str | None = None) -> dict[str, float]:
    from fedcybgd import Agent, Coordinator

    paths = write_rows(folder / "data", options.clients)
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(Coordinator.local(folder / "coordinator", log=folder / "server.log", environment=ENVIRONMENT))
        proxy = Proxy(int(coordinator.url.rpartition(":")[2]))
        agents = [
            stack.enter_context(
                Agent.local(
                    f"http://127.0.0.1:{proxy.port}", coordinator.token(), f"client-{number}", data=path, runs=["*"],
                    home=folder / f"client-{number}", settings={"device": {"threads": 1}}, log=folder / f"client-{number}.log", environment=ENVIRONMENT,
                )
            )
            for number, path in enumerate(paths)
        ]  # fmt: skip
        client = coordinator.client
        client.models.add(minilm(), "minilm")
        run = client.runs.create(spec_of(method, options)).id
        with Watch(lambda: coordinator.pid if coordinator.running else None) as watch:
            began = time.monotonic()
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
        return result | figures(proxy, watch)


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


def figures(proxy: Proxy, watch: Watch) -> dict[str, float]:
    return {"down_mb": proxy.down / 1e6, "up_mb": proxy.up / 1e6, "server_peak_mb": watch.peak / 1e6, "server_cpu_s": watch.cpu_s}


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def until(there: Callable[[], bool], most_s: float, what: str) -> None:
    if not wait_while(lambda: not there(), most_s):
        raise SystemExit(f"{what} did not come within {most_s:.0f} s")


def wait_while(going: Callable[[], bool], most_s: float) -> bool:
    """Whether it has ended within so many seconds."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # who was killed does not answer for a while
            if not going():
                return True
        time.sleep(1)
    return False


def arms(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], dict[str, float]]]]:
    for fault in options.fault or [None]:
        named = "" if fault is None else f", {fault} killed"
        yield f"Flower{named}", lambda folder, fault=fault: flower(folder, options, fault)  # type: ignore[misc]
        yield f"whole models{named}", lambda folder, fault=fault: ours(folder, options, "whole", fault)  # type: ignore[misc]
        if fault is None:
            yield "blocks", lambda folder: ours(folder, options, "blocks")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--flower", type=Path, required=True, help="bin directory of an environment with flwr, torch and transformers")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of a client in a round")
    parser.add_argument(
        "--fault", choices=("server", "client"), action="append", help="kill it in the second round, instead of a run without"
    )
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a run that has not ended counts as lost")
    parser.add_argument("--only", help="only arms with this in their name")
    options = parser.parse_args()
    options.flower = options.flower.absolute()
    signal.signal(signal.SIGTERM, lambda *_: exit(1))
    found: dict[str, dict[str, float]] = {}
    for name, arm in arms(options):
        if options.only is None or options.only in name:
            with tempfile.TemporaryDirectory(prefix="flower-") as folder:
                found[name] = arm(Path(folder))
            print(f"{name}: {found[name]}", flush=True)
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
        shown = {
            name: values[name] / first[name] for name in ("wall_s", "down_mb", "up_mb", "server_peak_mb", "server_cpu_s") if first.get(name)
        }
        print(f"{arm}, of {next(iter(found))}: " + ", ".join(f"{name} × {ratio:.2f}" for name, ratio in shown.items() if name in values))


if __name__ == "__main__":
    main()
