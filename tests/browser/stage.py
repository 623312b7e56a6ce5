"""What the pages show in these tests: runs that wait, go on and have ended, and two agents that work when a test says so."""

from pathlib import Path
from typing import Any

import httpx
import yaml

from fedcybgd import Client
from fedcybgd.coordinator.dashboard.browser import COOKIE
from fedcybgd.shared.contract.assignments import LeasedAssignment
from tests.e2e.conftest import write_rows
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand

NAMES = ["amiens", "bergen"]
LONG = "a-run-that-goes-on-and-has-a-name-as-long-as-people-give"
"""Name of the run that goes on"""


class Stage:
    """A coordinator, two agents, a run that goes on as long as the tests do, and one that has ended."""

    def __init__(self, folder: Path, bert: Path) -> None:
        self.folder, self.live = folder, LiveCoordinator(folder / "coordinator")
        self.url, self.client = self.live.url, Client(self.live.url, self.live.operator_key)
        self.client.models.add(str(bert), "tiny")
        write_rows(folder / "held-out.jsonl", 9, 16)
        self.agents = [Hand(self.live, name) for name in NAMES]
        self.keys = {"owner": self.live.operator_key} | {role: self.client.operators.add(role, role).key for role in ("viewer", "operator")}
        self.cookies = {role: self._logged_in(key) for role, key in self.keys.items()}
        self.ended = self.start("short", cycles=1)
        wait_for(lambda: self._worked() and self.live.state_of("short") == "completed")
        self.run = self.start(LONG)
        said = {"runs": [{"run_id": self.run, "fits": True, "rows": 64, "exact": True}]}
        for agent in self.agents:
            agent.http.put("/agents/me/readiness", json=said).raise_for_status()
        for _ in range(2):
            self.move(self.run)

    def create(self, name: str, cycles: int = 500) -> str:
        """A run of two rounds a cycle that is prepared; its id."""
        for agent in self.agents:
            agent.me()  # who was not there for a while takes no part in it
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self._spec(name, cycles)))
        return self.client.runs.create(path, wait_s=60).id

    def _spec(self, name: str, cycles: int) -> dict[str, Any]:
        return {
            "name": name, "model": "tiny", "task": {"kind": "text-classification", "labels": 2, "max_length": 16},
            "schedule": {"cycles": cycles, "blocks": ["layers"], "always": ["pooler", "head"]},
            "train": {"steps": 10, "batch_size": 8, "learning_rate": 1e-5, "precision": "float32"},
            "evaluate": {"held_out": "held-out.jsonl", "every": 10 if cycles > 1 else 1}, "lease_s": 300,
            "compression": {"calibration_rows": 0 if cycles > 1 else 8}, "delta": {"codec": "float32"}, "admission": {"norm_band": None},
        }  # fmt: skip

    def start(self, name: str, **more: int) -> str:
        run = self.create(name, **more)
        self.client.runs.start(run)
        return run

    def move(self, run: str) -> None:
        """The agents do whatever they are given until this run has closed a round more, and then have begun what comes next."""
        done = self.client.runs.get(run).rounds_done
        wait_for(lambda: self._worked() and self.client.runs.get(run).rounds_done > done)
        wait_for(lambda: any(self._begun(agent) for agent in self.agents))

    def _worked(self) -> bool:
        for agent in self.agents:
            if (held := self._begun(agent)) is not None:
                agent.deliver(held, steps=10, rows=64)
        return True

    def _begun(self, agent: Hand) -> LeasedAssignment | None:
        if (held := agent.claim("*")) is not None:
            progress = {"phase": "training", "step": 3, "steps": 10, "loss": 0.7, "tokens_per_s": 900, "peak_memory_bytes": 300 << 20}
            agent.http.post(f"/assignments/{held.assignment_id}/renew", json={"attempt": held.attempt, "progress": progress})
        return held

    def _logged_in(self, key: str) -> str:
        """The cookie of a browser in which this key was given."""
        with httpx.Client(base_url=self.url) as http:
            form = http.get("/admin").text.partition('name="form" value="')[2].partition('"')[0]
            return http.post("/admin", data={"form": form, "key": key}).cookies[COOKIE]

    def stop(self) -> None:
        self.live.stop()
