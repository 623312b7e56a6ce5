"""What it costs to have jobs done by a Ray cluster in place of a process beside the coordinator, both in one run.

    python -m benchmarks.ray_cluster [--json FILE] [--jobs N]

The cluster is one of this machine, which is started and ended here, with processes as important as others (`make ray` installs Ray, and its
Python runs this). Two jobs: one that is refused at once, an import from nowhere, so that what is left is the way there and back; and the
import of a BERT of two small layers, which reads and writes files. Each is done once before it counts, then by both in turn.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.report import arguments, finish, spread
from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload
from fedcybgd.coordinator.jobs.engine import Engine
from fedcybgd.coordinator.jobs.engine_process import EngineProcess
from fedcybgd.coordinator.jobs.ray_cluster import RayCluster
from fedcybgd.coordinator.jobs.ray_engine import RayEngine
from fedcybgd.coordinator.storage import Place, open_place
from fedcybgd.shared.contract.errors import FedError
from tests.support.models import tiny_bert
from tests.support.ray_cluster import SETTLES_S, Cluster


def timed(step: Callable[[], object]) -> float:
    began = time.monotonic()
    step()
    return time.monotonic() - began


def done(engine: Engine, source: Path) -> None:
    with suppress(FedError):
        engine.submit("import", ImportPayload(source=str(source))).result(300)


def megabytes(processes: list[psutil.Process]) -> float:
    """Of memory, what they share with each other counted once."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e6


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--jobs", type=int, default=30, metavar="N", help="of each sort")
    chosen = parser.parse_args()
    own = psutil.Process()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), tiny_bert(Path(name) / "bert")
        place = Place(folder / "blobs")
        open_place(place)
        figures: dict[str, float] = {}
        engines: dict[str, Engine] = {"process": EngineProcess(place, 1)}
        figures["process_first_job_s"] = timed(lambda: done(engines["process"], folder / "nowhere"))
        figures["process_mb"] = megabytes(own.children(recursive=True))
        cluster = Cluster()
        try:
            figures["cluster_start_s"] = timed(cluster.start) - SETTLES_S
            before = megabytes([own])
            reached = RayCluster(cluster.url, place, 1, "cpu")
            figures["ray_connect_s"] = timed(reached.check)
            figures["coordinator_grows_mb"] = megabytes([own]) - before
            figures["cluster_idle_mb"] = megabytes(cluster.processes())
            engines["ray"] = RayEngine(reached)
            figures["ray_first_job_s"] = timed(lambda: done(engines["ray"], folder / "nowhere"))
            figures["cluster_mb"] = megabytes(cluster.processes())
            for job, source in {"refused": folder / "nowhere", "import": model}.items():
                times: dict[str, list[float]] = {engine: [] for engine in engines}
                for number in range(chosen.jobs + 1):
                    for engine, does in engines.items():
                        spent = timed(lambda does=does, source=source: done(does, source))  # type: ignore[misc]
                        if number:
                            times[engine].append(1000 * spent)
                for engine, spents in times.items():
                    print(f"{job} by {engine}: {spread(spents, 'ms')}")
                    figures[f"{engine}_{job}_ms"] = statistics.median(spents)
        finally:
            for engine in engines.values():
                engine.close()
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
            cluster.__exit__(None, None, None)
    finish(figures, {}, chosen.json)


if __name__ == "__main__":
    main()
