"""What `fedcoord plan` says before a run against what the run then measures: memory of every visit, bytes of every agent.

    python -m benchmarks.plan_accuracy [--json FILE] [--only minilm stories]

Real processes: a coordinator and two agents with one thread each. MiniLM learns Banking77, stories260K Shakespeare, each twice over
all blocks, in float32. Plans are made from the run file alone, before the run is created. Rows fill `max_length`, as plans take
them to; shorter rows take less memory than planned. Figures are how far the plan is off, relative to what was measured.
"""

import gzip
import json
import os
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.banking77 import LABELS, ROWS, minilm
from benchmarks.report import arguments, finish
from benchmarks.system import System
from fedcybgd.shared.contract.plans import PlanView
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.views import AssignmentView

EXAMPLES = Path(__file__).parent.parent / "examples"
AGENTS = 2
MOST = 0.10


@dataclass(frozen=True)
class Case:
    model: Callable[[], Path]
    rows: Callable[[], list[dict[str, Any]]]
    spec: dict[str, Any]


def queries() -> list[dict[str, Any]]:
    """Queries of Banking77 in groups of eight, which are longer than any row may be; with the label of the first."""
    rows = _read(ROWS)
    random.Random(0).shuffle(rows)
    return [{"text": " ".join(r["text"] for r in rows[i : i + 8]), "label": rows[i]["label"]} for i in range(0, 8 * 400, 8)]


def speeches() -> list[dict[str, Any]]:
    rows = _read(EXAMPLES / "shakespeare" / "shakespeare_by_role.jsonl.gz")
    return [{"text": row["text"]} for row in rows[: len(rows) // 6]]


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


CASES = {
    "minilm": Case(
        minilm, queries,
        {
            "task": {"kind": "text-classification", "labels": LABELS, "max_length": 64},
            "schedule": {"cycles": 2, "order": "descending", "always": ["pooler", "head"]},
            "train": {"steps": 4, "batch_size": 32, "learning_rate": 4e-4, "always_learning_rate": 2e-3, "precision": "float32"},
        },
    ),
    "stories": Case(
        lambda: EXAMPLES / "models" / "stories260K", speeches,
        {
            "task": {"kind": "causal-lm", "max_length": 128},
            "schedule": {"cycles": 2, "always": ["norm"]},
            "train": {"steps": 30, "batch_size": 8, "learning_rate": 3e-3, "learning_rate_decay": 0.5, "precision": "float32"},
        },
    ),
}  # fmt: skip


def measure(name: str, case: Case, folder: Path) -> dict[str, float]:
    """Plan a run, have it done, and compare."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "262144"  # as agents with a memory limit have it; plans are for them
    rows = case.rows()
    partitions = {}
    for i in range(AGENTS):
        folder.mkdir(parents=True, exist_ok=True)
        path = partitions[f"agent-{i}"] = folder / f"rows-{i}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[i::AGENTS]))
    spec = {"name": name, "model": name, "lease_s": 300, **case.spec}
    with System(folder / "system", partitions) as system:
        system.add_model(name, case.model())
        plan = system.client.runs.plan(spec, rows=_windows(case, rows) // AGENTS)
        assert not plan.problems, plan.problems
        run_id = system.create_run(spec)
        system.start(run_id)
        view, visits = system.wait_for(run_id), system.visits(run_id)
    return compare(name, plan, visits, view.bytes.up)


def _windows(case: Case, rows: list[dict[str, Any]]) -> int:
    if case.spec["task"]["kind"] == "text-classification":
        return len(rows)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case.model(), local_files_only=True, trust_remote_code=False)
    ids = tokenizer([row["text"] for row in rows], add_special_tokens=False)["input_ids"]
    return sum(len(i) + 1 for i in ids) // int(case.spec["task"]["max_length"])


def compare(name: str, plan: PlanView, visits: list[tuple[AssignmentView, TrainMetrics]], sent: int) -> dict[str, float]:
    """Figures of one run, with a line for each block and agent."""
    planned = {(a.name, v.block): v.memory_bytes or 0 for a in plan.agents for v in a.visits}
    measured: dict[str, list[tuple[int, int]]] = defaultdict(list)
    fetched: dict[str, int] = defaultdict(int)
    for visit, metrics in visits:
        assert visit.agent is not None
        measured[visit.block].append((planned[visit.agent, visit.block], metrics.peak_memory_bytes))
        fetched[visit.agent] += metrics.bytes_down
    print(f"\n{name}: peak memory of each block's visits, MB: planned, measured median (least to greatest), ratio")
    ratios, plans, peaks = {}, [], []
    for block, pairs in measured.items():
        of_plan, of_run = statistics.median(p for p, _ in pairs), statistics.median(m for _, m in pairs)
        ratios[block] = of_plan / of_run
        plans.append(of_plan)
        peaks.append(of_run)
        least, greatest = min(m for _, m in pairs), max(m for _, m in pairs)
        print(f"  {block:12} {of_plan / 1e6:8.1f} {of_run / 1e6:8.1f} ({least / 1e6:.1f} to {greatest / 1e6:.1f})  {ratios[block]:.3f}")
    print(f"{name}: megabytes of the whole run: planned, measured, ratio")
    down = sum(a.whole_run.down for a in plan.agents)
    up = sum(a.whole_run.up for a in plan.agents)
    for agent in plan.agents:
        own = agent.whole_run.down
        real = fetched[agent.name]
        print(f"  {agent.name:12} {own / 1e6:8.3f} {real / 1e6:8.3f}  {own / real:.3f} down")
    real_down = sum(fetched.values())
    print(f"  {'all':12} {down / 1e6:8.3f} {real_down / 1e6:8.3f}  {down / real_down:.3f} down")
    print(f"  {'all':12} {up / 1e6:8.3f} {sent / 1e6:8.3f}  {up / sent:.3f} up", flush=True)
    return {
        f"{name}_memory_largest": abs(max(plans) / max(peaks) - 1),
        f"{name}_memory_mean": abs(sum(plans) / sum(peaks) - 1),
        f"{name}_memory_worst": max(abs(ratio - 1) for ratio in ratios.values()),
        f"{name}_bytes": abs((down + up) / (real_down + sent) - 1),
        f"{name}_down": abs(down / real_down - 1),
        f"{name}_up": abs(up / sent - 1),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for name in options.only:
            figures |= measure(name, CASES[name], Path(folder) / name)
    finish(figures, dict.fromkeys(figures, MOST), options.json)


if __name__ == "__main__":
    main()
