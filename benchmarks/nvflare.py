"""The same training by NVFlare and by this system, real processes on one machine: `python -m benchmarks.nvflare --nvflare DIR`.

What is done and measured: `benchmarks/framework.py`. NVFlare is a server and clients of a provisioned project, each started by its own startup kit, and
a job of its `FedAvgRecipe` and Client API (`benchmarks/nvflare_app`), sent by its command line.

`--nvflare` is the `bin` directory of an environment with nvflare (2.9 was used), torch and transformers; it is not installed with the project.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.framework import TRAINING, Framework, compare, until
from benchmarks.watched import listens

APP = Path(__file__).parent / "nvflare_app"
OPERATOR = "operator@here.org"
BUILDERS: list[dict[str, Any]] = [
    {"path": "nvflare.lighter.impl.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
    {"path": "nvflare.lighter.impl.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
    {"path": "nvflare.lighter.impl.cert.CertBuilder"},
    {"path": "nvflare.lighter.impl.signature.SignatureBuilder"},
]
"""Those of the project file that `nvflare provision` writes as a sample."""
STORED = "/tmp/nvflare"
"""Where a server keeps its jobs unless it is told otherwise, with those of every other server of the machine."""


class NVFlare(Framework):
    name, needs = "NVFlare", "nvflare, torch and transformers"

    def prepare(self) -> None:
        by_relay = {"host": "localhost", "port": self.relay.port}
        participants: list[dict[str, Any]] = [
            {"name": "server", "type": "server", "org": "here", "fed_learn_port": self.port, "default_host": "localhost"},
            {"name": OPERATOR, "type": "admin", "org": "here", "role": "project_admin"},
            *({"name": f"client-{i}", "type": "client", "org": "here", "connect_to": by_relay} for i in range(self.options.clients)),
        ]
        project = {"api_version": 3, "name": "compared", "participants": participants, "builders": BUILDERS}
        (self.folder / "project.yml").write_text(yaml.safe_dump(project))
        self.ask("nvflare", "provision", "-p", self.folder / "project.yml", "-w", self.folder / "kits")
        self._kits = self.folder / "kits" / "compared" / "prod_00"
        settings = self._kits / "server" / "local" / "resources.json"
        settings.write_text(settings.with_suffix(".json.default").read_text().replace(STORED, str(self.folder)))
        size = [str(value) for value in (self.options.rounds, self.options.steps, self.options.clients)]
        self.ask("python", APP / "job.py", self.data, *size, TRAINING, self.folder / "jobs")

    def server(self) -> None:
        self._start("server")
        until(lambda: listens(self.port), 60, "the server")

    def client(self, number: int) -> None:
        self._start(f"client-{number}")

    def wait_for_clients(self) -> None:
        until(lambda: len(self._told("system", "status", "client")["client_status"]) == self.options.clients, 120, "every client")

    def submit(self) -> str:
        return str(self._told("job", "submit", "-j", self.folder / "jobs" / "intents")["job_id"])

    def state(self, run: str) -> str:
        kind, _, how = str(self._told("job", "meta", run)["status"]).partition(":")
        return how.lower() if kind == "FINISHED" else ""

    def _start(self, name: str) -> None:
        """By its startup kit, without the loop that would start it again by itself."""
        self.start(name, "bash", self._kits / name / "startup" / "sub_start.sh", "--once")

    def _told(self, *words: str | Path) -> dict[str, Any]:
        said = self.ask("nvflare", "--format", "json", *words, "--startup-kit", self._kits / OPERATOR)
        answer: dict[str, Any] = json.loads(said[said.index("{") :])["data"]
        return answer


if __name__ == "__main__":
    compare(NVFlare, __doc__)
