"""How long until a block is in other hands when the training of its agent hangs, with every setting as it comes.

A coordinator and two agents, as real processes. The training process of the one that trains is stopped (SIGSTOP), which its daemon notices; then
daemon and training process of whoever trains, so that nobody there can say anything.
"""

import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from fedcybgd import Agent, Coordinator
from tests.support.models import tiny_bert
from tests.support.processes import ENVIRONMENT, start_agent, trainer, wait_for

STEPS = 50_000
LIMIT_S = 400.0
TARGETS = {"trainer_s": 120.0, "machine_s": 120.0}


def main() -> None:
    options = report.arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": "a b c", "label": n % 2}) + "\n" for n in range(64)))
        with Coordinator.local(folder / "coordinator", environment=ENVIRONMENT) as coordinator:
            coordinator.client.models.add(tiny_bert(folder / "bert"), "tiny", wait_s=120)
            agents = [start_agent(folder / who, who, coordinator, rows) for who in ("ann", "ben")]
            try:
                run = coordinator.client.runs.create(
                    {
                        "name": "hung", "model": "tiny", "task": {"kind": "text-classification", "labels": 2, "max_length": 16},
                        "schedule": {"blocks": ["layers.0"], "always": ["head"], "cycles": 9}, "train": {"steps": STEPS, "batch_size": 8},
                    }
                )  # fmt: skip
                coordinator.client.runs.start(run.id)
                figures = {"trainer_s": handed_over(coordinator, run.id, agents, whole=False)}
                figures["machine_s"] = handed_over(coordinator, run.id, agents, whole=True)
            finally:
                for agent in agents:
                    agent.kill()
    report.finish(figures, TARGETS, options.json)


def handed_over(coordinator: Coordinator, run: str, agents: list[Agent], whole: bool) -> float:
    """Seconds from the stop of who trains until another holds the block."""
    holder = wait_for(lambda: training(coordinator, run), limit=LIMIT_S)
    agent = next(a for a in agents if a.name == holder)
    hanging = trainer(agent)
    assert hanging is not None
    stopped = [hanging, psutil.Process(agent.pid)] if whole else [hanging]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: training(coordinator, run) not in (None, holder), limit=LIMIT_S)
    return time.monotonic() - began


def training(coordinator: Coordinator, run: str) -> Any:
    """The name of the agent that has made steps."""
    current = coordinator.client.runs.get(run).current
    return next((a.agent for a in current if a.state == "leased" and a.progress is not None and a.progress.step), None)


if __name__ == "__main__":
    main()
