"""What crosses the wire in a whole training, against whole-model averaging: `python -m benchmarks.wire_bytes [--data DIR]`.

Real processes: a coordinator and six agents. stories260K learns Shakespeare as in benchmarks/quality.py, once uncompressed and once with
int8 blocks and int8 deltas; with `--data` (a directory with the SST-2 files), MiniLM learns SST-2 as well, whose layers are each visited
in five cycles. Steps are few: bytes do not depend on them. Bytes are the coordinator's counts of what went through its sockets; the
agents' own counts must be equal, to the byte. FedAvg of the whole model in bfloat16 is arithmetic: agents x exchanges x 2 directions x
2 bytes x parameters, with as many agents, once for as many tokens as quality.py trains between two exchanges.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.banking77 import minilm
from benchmarks.quality import AGENTS, spec_of, write_rows
from benchmarks.report import arguments, finish
from benchmarks.system import System
from examples.demo.tasks import EXAMPLES

TARGET = 0.12


def run(task: str, variant: str, data: Path, folder: Path) -> dict[str, float]:
    """One training over HTTP; its bytes by kind, and what FedAvg would move."""
    rows = folder / "rows"
    rows.mkdir(parents=True)
    partitions, _ = write_rows(task, data, rows, seed=0)
    spec: dict[str, Any] = spec_of(task, variant, 0)
    del spec["evaluate"]
    spec["train"] = {k: v for k, v in spec["train"].items() if k != "epochs"} | {"steps": 5}
    names = [f"agent-{i}" for i in range(AGENTS)]
    with System(folder / "system", dict(zip(names, partitions, strict=True))) as system:
        system.add_model(spec["model"], minilm() if task == "sst2" else EXAMPLES / "models" / "stories260K")
        run_id = system.create_run(spec | {"lease_s": 300})
        system.start(run_id)
        view = system.wait_for(run_id)
        traffic = list(system.client.runs.traffic(run_id))
        visits = system.visits(run_id)
    kinds: Counter[str] = Counter()
    for row in traffic:
        kinds[row.kind] += row.bytes
    down, up = sum(m.bytes_down for _, m in visits), sum(m.bytes_up for _, m in visits)
    counted = kinds["shard"] + kinds["patch"] + kinds["file"], kinds["delta"]
    assert (down, up) == counted, f"the agents counted {down} down and {up} up, the coordinator {counted}"
    parameters = sum(b.num_parameters for b in view.blocks)
    exchanges = len(visits) / AGENTS * (1 if task == "sst2" else 4)  # 80 steps a visit are four times FedAvg's 20
    fedavg = exchanges * AGENTS * 2 * 2 * parameters
    total = sum(kinds.values())
    print(
        f"{task:12} {variant:8} {total / 1e6:9.2f} MB: shards {kinds['shard'] / 1e6:.2f}, patches {kinds['patch'] / 1e6:.2f}, files "
        f"{kinds['file'] / 1e6:.2f}, deltas {kinds['delta'] / 1e6:.2f}   FedAvg bf16 {fedavg / 1e6:.2f} MB   ratio {total / fedavg:.3f}",
        flush=True,
    )
    name = f"{task}_{variant}"
    return {f"{name}_mb": total / 1e6, f"{name}_fedavg_mb": fedavg / 1e6, f"{name}_ratio": total / fedavg}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="directory with the SST-2 files; without it, Shakespeare only")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for task in ["shakespeare", *(["sst2"] if options.data else [])]:
        for variant in ("none", "int8"):
            with tempfile.TemporaryDirectory(prefix="wire-") as scratch:
                figures |= run(task, variant, options.data, Path(scratch))
    finish(figures, {name: TARGET for name in figures if name.endswith("int8_ratio")}, options.json)


if __name__ == "__main__":
    main()
