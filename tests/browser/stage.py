"""What the pages show in these tests: real processes, with runs that wait, go on and have ended."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from fedcybgd import Coordinator
from fedcybgd.coordinator.dashboard.browser import COOKIE
from tests.e2e.conftest import write_rows
from tests.support.processes import ENVIRONMENT, start_agent, trainer, wait_for

NAMES = ["amiens", "bergen"]


class Stage:
    """A coordinator, two agents, a run that goes on as long as the tests do, and one that has ended. In a test visits get further only where it says so."""

    def __init__(self, folder: Path, bert: Path) -> None:
        self.folder, self.bert = folder, bert
        self.coordinator = Coordinator.local(folder / "coordinator", environment=ENVIRONMENT)
        self.client, self.url = self.coordinator.client, self.coordinator.url
        self.client.models.begin(str(bert), "tiny")
        rows = [write_rows(folder / f"rows-{name}.jsonl", number) for number, name in enumerate(NAMES)]
        write_rows(folder / "held-out.jsonl", 9, 16)
        self.agents = [start_agent(folder / name, name, self.coordinator, path) for name, path in zip(NAMES, rows, strict=True)]
        self.client.models.wait("tiny")
        self.keys = {"owner": self.coordinator.key} | {role: self.client.operators.add(role, role).key for role in ("viewer", "operator")}
        self.cookies = {role: self._logged_in(key) for role, key in self.keys.items()}
        self.ended = self.start("short", cycles=1)
        self.client.runs.wait(self.ended, timeout_s=60)
        self.run = self.start("long")
        self.client.runs.wait(self.run, lambda run: run.rounds_done >= 2, timeout_s=60)
        self.hold()

    def create(self, name: str, cycles: int = 500, steps: int = 10) -> str:
        """A run of two rounds a cycle that is prepared; its id."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self._spec(name, cycles, steps)))
        return self.client.runs.create(path, wait_s=60).id

    def _spec(self, name: str, cycles: int, steps: int) -> dict[str, Any]:
        return {
            "name": name, "model": "tiny", "task": {"kind": "text-classification", "labels": 2, "max_length": 16},
            "schedule": {"cycles": cycles, "blocks": ["layers"], "always": ["pooler", "head"]},
            "train": {"steps": steps, "batch_size": 8, "learning_rate": 1e-5, "precision": "float32"},
            "evaluate": {"held_out": "held-out.jsonl", "every": 10 if cycles > 1 else 1}, "lease_s": 300,
            "compression": {"calibration_rows": 0 if cycles > 1 else 8},
        }  # fmt: skip

    def start(self, name: str, **more: int) -> str:
        run = self.create(name, **more)
        self.client.runs.start(run)
        return run

    def hold(self) -> None:
        """Visits go on, and get no further: what a page shows of a run costs no processor meanwhile."""
        for process in self._trainers():
            process.suspend()

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Visits get further."""
        for process in self._trainers():
            with suppress(psutil.NoSuchProcess):  # an agent ends one that does nothing for too long, and starts another
                process.resume()
        yield
        self.hold()

    def _trainers(self) -> list[psutil.Process]:
        return [wait_for(lambda agent=agent: trainer(agent)) for agent in self.agents]

    def _logged_in(self, key: str) -> str:
        """The cookie of a browser in which this key was given."""
        with httpx.Client(base_url=self.url) as http:
            form = http.get("/admin").text.partition('name="form" value="')[2].partition('"')[0]
            return http.post("/admin", data={"form": form, "key": key}).cookies[COOKIE]

    def stop(self) -> None:
        for process in (*self.agents, self.coordinator):
            if process.running:
                process.kill()
