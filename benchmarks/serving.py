"""What it costs a coordinator to have its blobs fetched: from the directory, by nginx in front of it, and from S3 by presigned addresses.

    python -m benchmarks.serving [--json FILE] [--gigabytes N]

Four readers fetch all shards of a real assignment again and again, from a real `fedcoord serve`; the processor time of its web process
counts, and that of whoever sends the bytes beside it. nginx is measured where it is installed; S3 where `S3_PROGRAMS` names the programs
of its server (`make s3` installs it in `.venv-s3/bin`).
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.import_memory import write_checkpoint
from benchmarks.report import arguments, finish
from benchmarks.system import ENVIRONMENT
from fedcybgd import Coordinator
from fedcybgd.agent.client import Client
from fedcybgd.shared.contract.agents import ClaimRequest, DeviceInfo, EnrolRequest, RunReadiness
from fedcybgd.shared.contract.words import ACCEL, API, ELSEWHERE
from tests.support.s3_server import S3Server, free_port

SIZES = {
    "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 1, "num_attention_heads": 32,
    "num_key_value_heads": 4,
}  # fmt: skip
READERS = 4
RUN = {
    "name": "serving", "model": "large", "task": {"kind": "causal-lm", "max_length": 16}, "schedule": {"cycles": 1},
    "train": {"steps": 1, "learning_rate": 1e-4},
}  # fmt: skip
NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 200; }}
http {{
    access_log off; sendfile on; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {url}; proxy_set_header FedCyBGD-Accel yes; proxy_buffering off; }}
        location /blobs/ {{ internal; alias {blobs}/; }}
    }}
}}
"""


@dataclass(frozen=True)
class Cost:
    """Processor seconds for a gigabyte."""

    web: float
    sender: float
    gigabytes: float


class Scene:
    """A coordinator with a run whose first assignment is leased."""

    def __init__(self, folder: Path, checkpoint: Path, environment: Mapping[str, str]) -> None:
        self.home = folder / "home"
        self._coordinator = Coordinator.local(self.home, log=folder / "log", environment=ENVIRONMENT | environment)
        self._coordinator.__enter__()
        self.url, client = self._coordinator.url, self._coordinator.client
        self.web = psutil.Process(self._coordinator.pid)
        client.models.add(checkpoint, "large")
        self.key = (
            Client(self.url)
            .enrol(EnrolRequest(token=self._coordinator.token(), name="reader", device=DeviceInfo(), version="benchmark"))
            .key
        )
        assert self.key is not None
        agent = Client(self.url, self.key)
        agent.me()
        run = client.runs.create(RUN)
        agent.say_ready([RunReadiness(run_id=run.id, fits=True)])
        client.runs.start(run.id)
        while (assignment := agent.claim(ClaimRequest(runs=["*"]), wait=30)) is None:
            pass
        self.places = [f"{API}/assignments/{assignment.assignment_id}/shards/{ref.digest}" for ref in assignment.manifest.blocks]
        self.bytes = sum(ref.size for ref in assignment.manifest.blocks)

    def close(self) -> None:
        self._coordinator.__exit__(None, None, None)


def fetched(scene: Scene, at: str, headings: Mapping[str, str], gigabytes: float, sender: list[psutil.Process]) -> Cost:
    def read(place: str) -> int:
        with httpx.Client(timeout=60) as http:
            answer = http.send(
                http.build_request("GET", at + place, headers={"Authorization": f"Bearer {scene.key}", **headings}), stream=True
            )
            if answer.status_code == 307:
                answer.close()
                answer = http.send(http.build_request("GET", answer.headers["location"]), stream=True)
            answer.raise_for_status()
            count = sum(map(len, answer.iter_raw(1 << 20)))
            answer.close()
            return count

    with ThreadPoolExecutor(READERS) as pool:
        wanted = sum(pool.map(read, scene.places))  # once, so that digests are known and files in memory
        assert wanted == scene.bytes, (wanted, scene.bytes)
        before, beside = cpu([scene.web]), cpu(sender)
        rounds = max(1, round(gigabytes * 1e9 / scene.bytes))
        total = sum(pool.map(read, scene.places * rounds)) / 1e9
        time.sleep(0.5)  # what is counted after the answer
        return Cost((cpu([scene.web]) - before) / total, (cpu(sender) - beside) / total, total)


def cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def nginx(folder: Path, program: str, scene: Scene) -> Iterator[tuple[str, list[psutil.Process]]]:
    folder.mkdir()
    folder.chmod(0o755)
    port = free_port()
    text = NGINX.format(folder=folder, port=port, url=scene.url, blobs=scene.home / "blobs")
    (folder / "nginx.conf").write_text((f"user {os.environ.get('USER') or 'root'}; " if os.geteuid() == 0 else "") + text)
    process = subprocess.Popen([program, "-c", str(folder / "nginx.conf"), "-p", str(folder)])
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                httpx.get(f"http://127.0.0.1:{port}{API}/health")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid).children()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="fetched on each side")
    given = parser.parse_args()
    figures: dict[str, float] = {}

    def note(side: str, cost: Cost) -> None:
        figures[f"{side}_web_cpu_s_per_gb"], figures[f"{side}_sender_cpu_s_per_gb"] = cost.web, cost.sender
        print(f"{side}: {cost.gigabytes:.2f} GB, {cost.web:.3f} CPU s a GB in the web process, {cost.sender:.3f} in who sends", flush=True)

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        write_checkpoint(folder / "model", SIZES)
        (folder / "directory").mkdir()
        scene = Scene(folder / "directory", folder / "model", {"FEDCOORD_ACCEL": "/blobs/"})
        try:
            note("directory", fetched(scene, scene.url, {}, given.gigabytes, []))
            if (program := shutil.which("nginx")) is not None:
                with nginx(folder / "nginx", program, scene) as (url, sender):
                    note("nginx", fetched(scene, url, {ACCEL: "yes"}, given.gigabytes, sender))
        finally:
            scene.close()
        if (programs := os.environ.get("S3_PROGRAMS")) is not None:
            server = S3Server(Path(programs), folder / "s3")
            try:
                server.wait()
                server.make("bucket")
                (folder / "objects").mkdir()
                scene = Scene(folder / "objects", folder / "model", server.environment | {"FEDCOORD_STORAGE": "s3://bucket/fedcoord"})
                try:
                    note("presigned", fetched(scene, scene.url, {ELSEWHERE: "yes"}, given.gigabytes, server.processes()))
                    note("through", fetched(scene, scene.url, {}, given.gigabytes, server.processes()))
                finally:
                    scene.close()
            finally:
                server.stop()
    finish(figures, {"directory_web_cpu_s_per_gb": 0.35}, given.json)


if __name__ == "__main__":
    main()
