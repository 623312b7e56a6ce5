"""The same training by Flower and by this system, real processes on one machine: `python -m benchmarks.flower --flower DIR`.

What is done and measured: `benchmarks/framework.py`. Flower is a SuperLink with a database, SuperNodes, and its `FedAvg` (`benchmarks/flower_app`).

`--flower` is the `bin` directory of an environment with flwr (1.42 was used), torch and transformers; it is not installed with the project.
"""

import json
import re
from pathlib import Path
from time import sleep

from benchmarks.framework import Framework, compare, until
from benchmarks.watched import free, listens

APP = Path(__file__).parent / "flower_app"


class Flower(Framework):
    name, needs = "Flower", "flwr, torch and transformers"

    def prepare(self) -> None:
        home = self.folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment |= {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}

    def server(self) -> None:
        words = ["--insecure", "--database", str(self.folder / "state.db"), "--port", str(self.port)]
        self.start("server", "flower-superlink", *words, "--disable-runtime-dependency-installation")
        until(lambda: listens(self.port), 60, "the SuperLink")

    def client(self, number: int) -> None:
        words = ["--insecure", "--superlink", f"127.0.0.1:{self.relay.port}", "--port", str(free())]
        self.start(f"client-{number}", "flower-supernode", *words, "--node-config", f"partition-id={number}")

    def wait_for_clients(self) -> None:
        sleep(5)  # a round waits for the others: `min_available_nodes`

    def submit(self) -> str:
        size = f"rounds={self.options.rounds} steps={self.options.steps} clients={self.options.clients}"
        said = self.ask("flwr", "run", APP, "here", "--run-config", f"folder='{self.data}' {size}", "--format", "json")
        return str(json.loads(said[said.index("{") :])["run-id"])

    def state(self, run: str) -> str:
        listed = self.ask("flwr", "ls", "here", "--format", "json", check=False)
        found = re.search(rf'"run-id":\s*"?{run}"?.*?"status":\s*"finished:([^"]+)"', listed, re.S)
        return found[1] if found else ""


if __name__ == "__main__":
    compare(Flower, __doc__)
