"""Jobs on a real Ray cluster: what comes of them is to the bit what it is here, whoever dies meanwhile. `make ray` installs Ray and runs this."""

import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pydantic import BaseModel

from fedcybgd import Coordinator
from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload
from fedcybgd.coordinator.engine.model_directory import ModelRefused
from fedcybgd.coordinator.jobs import ray_cluster
from fedcybgd.coordinator.jobs.engine import EngineAway
from fedcybgd.coordinator.jobs.ray_cluster import RayCluster, RayNodeUnfit
from fedcybgd.coordinator.jobs.ray_engine import RayEngine
from fedcybgd.coordinator.storage import Place
from fedcybgd.local.errors import NotStarted
from tests.e2e.conftest import Federation, spec
from tests.support.processes import ENVIRONMENT, wait_for
from tests.support.ray_cluster import Cluster, program
from tests.support.s3_server import free_port

pytestmark = [
    pytest.mark.skipif(program() is None, reason="Ray is not installed: `make ray` installs it beside .venv"),
    pytest.mark.timeout(900),
]
SECRET = "what-nobody-else-is-to-know"
VALUES = spec("same") | {"seed": 7}
IMPORT = ImportPayload(source="/nowhere")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> dict[str, str]:
    """What the run ends with that has its engines beside the coordinator."""
    system = Federation(tmp_path_factory.mktemp("here"), bert)
    try:
        return system.digests(system.start(VALUES))
    finally:
        system.stop()


@pytest.fixture
def connected(cluster: Cluster, tmp_path: Path) -> Iterator[RayCluster]:
    made = RayCluster(cluster.url, Place(tmp_path / "blobs"), 1, "cpu")
    made.check()
    yield made
    ray_cluster.imported().shutdown()


def at_a_job(cluster: Cluster, kind: str) -> list[psutil.Process]:
    return [worker for worker in cluster.workers() if worker.cmdline()[0] == f"ray::fedcoord {kind}"]


def known_to(cluster: Cluster, word: str) -> bool:
    """Whether the cluster has it anywhere where people look."""
    for process in cluster.processes():
        with suppress(psutil.Error):
            if word in str((process.cmdline(), process.environ())):
                return True
    return word.encode() in cluster.said()


def test_a_run_ends_as_one_with_engines_beside_the_coordinator(
    cluster: Cluster, here: dict[str, str], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    there = Federation(tmp_path / "there", bert, engine=cluster.url, engines=2, database_url=f"sqlite:///{tmp_path / SECRET}.db")
    try:
        assert there.digests(there.start(VALUES)) == here
        assert not known_to(cluster, SECRET)
        assert there.coordinator.stop() == 0
    finally:
        there.stop()
    assert "Traceback" not in there.coordinator.log.read_text()


def test_its_blobs_may_be_in_object_storage(cluster: Cluster, here: dict[str, str], bert: Path, tmp_path: Path) -> None:
    """With copies in the home of the node."""
    there = Federation(tmp_path / "there", bert, engine=cluster.url, storage=f"file://{tmp_path / 'bucket'}")
    try:
        assert there.digests(there.start(VALUES)) == here
    finally:
        there.stop()
    assert list((cluster.folder / "home" / "cache").rglob("*"))


def test_it_does_so_whoever_dies_meanwhile(cluster: Cluster, here: dict[str, str], bert: Path, tmp_path: Path) -> None:
    there = Federation(tmp_path / "there", bert, engine=cluster.url)
    try:
        run = there.start(VALUES)
        killed = wait_for(lambda: at_a_job(cluster, "apply"), limit=120)
        for process in killed:
            process.kill()
        wait_for(lambda: at_a_job(cluster, "apply"), limit=120)
        there.coordinator.kill()
        there.coordinator.start()
        assert there.digests(run) == here
    finally:
        there.stop()


def test_errors_cross_and_a_process_that_dies_or_is_to_end_is_told(connected: RayCluster, cluster: Cluster) -> None:
    engine = RayEngine(connected)
    under_way = engine.submit("import", IMPORT)  # torch is imported first
    for process in wait_for(lambda: at_a_job(cluster, "import")):
        process.kill()
    with pytest.raises(BrokenExecutor, match="died"):
        under_way.result(60)
    under_way = engine.submit("import", IMPORT)
    (worker,) = wait_for(lambda: at_a_job(cluster, "import"))
    engine.close()
    with pytest.raises(BrokenExecutor):
        under_way.result(1)
    wait_for(lambda: not worker.is_running(), limit=60)
    engine = RayEngine(connected)
    with pytest.raises(ModelRefused, match="nowhere"):
        engine.submit("import", IMPORT).result(120)
    assert engine.cpu_s() > 0, "it imported torch"
    connected._mark = "of another place"
    with pytest.raises(RayNodeUnfit, match="does not see the coordinator's blobs"):
        engine.submit("import", IMPORT).result(60)


def test_a_node_that_dies_takes_its_job_along_and_another_has_it_next(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add(cores=3)
    reached = RayCluster(cluster.url, Place(tmp_path / "blobs"), 3, "cpu")  # as many cores as only that one has
    try:
        reached.check()
        engine = RayEngine(reached)
        under_way = engine.submit("import", IMPORT)
        assert {worker.pid for worker in at_a_job(cluster, "import")} <= {process.pid for process in node.processes()}
        node.kill()
        with pytest.raises(BrokenExecutor):
            under_way.result(90)
        engine = RayEngine(reached)
        with pytest.raises(ModelRefused, match="nowhere"):
            wait_for(lambda: begun(engine), limit=90).result(120)
    finally:
        ray_cluster.imported().shutdown()


def begun(engine: RayEngine) -> Future[BaseModel] | None:
    """As lanes do: tried again while nobody has room."""
    under_way = engine.submit("import", IMPORT)
    return None if under_way.done() and isinstance(under_way.exception(), EngineAway) else under_way


def test_a_process_that_is_stopped_is_ended(connected: RayCluster, cluster: Cluster) -> None:
    engine = RayEngine(connected)
    under_way = engine.submit("import", IMPORT)
    (worker,) = wait_for(lambda: at_a_job(cluster, "import"))
    worker.suspend()
    engine.close()
    with pytest.raises(BrokenExecutor):
        under_way.result(1)
    try:
        wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, limit=60)
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def test_what_ray_says_is_told_apart() -> None:
    exceptions = ray_cluster.imported().exceptions

    died = [
        exceptions.WorkerCrashedError(),
        exceptions.OutOfMemoryError("too much"),
        exceptions.NodeDiedError("gone"),
        exceptions.TaskCancelledError(),
    ]
    for error in died:
        assert isinstance(ray_cluster._understood(error), BrokenExecutor)
    beside = ray_cluster._understood(exceptions.RayTaskError("job", "Traceback\nImportError: no module", ImportError()))
    assert (type(beside), str(beside)) == (RuntimeError, "a task failed beside its job: ImportError: no module")


def test_what_ray_itself_uses_of_the_processor_is_no_work(connected: RayCluster) -> None:
    ray = ray_cluster.imported()
    from ray.experimental import internal_kv

    def job(token: str, works: bool) -> None:
        from fedcybgd.coordinator.jobs.ray_node import told

        with told(token):
            until = time.monotonic() + 8
            while time.monotonic() < until:
                time.sleep(0 if works else 1)

    tasks = [ray.remote(job).remote(f"token-{works}", works) for works in (False, True)]
    ray.get(tasks)
    used = [float(internal_kv._internal_kv_get(f"token-{works}".encode(), namespace=b"fedcoord")) for works in (False, True)]
    assert used[0] == 0
    assert used[1] > 0.1


def test_a_cluster_that_is_lost_is_nobodys_failure_and_found_again(connected: RayCluster, cluster: Cluster) -> None:
    engine = RayEngine(connected)
    under_way = engine.submit("import", IMPORT)
    cluster.kill()
    with pytest.raises(EngineAway):
        under_way.result(120)
    with pytest.raises(EngineAway):
        engine.submit("import", IMPORT)
    cluster.start()
    with pytest.raises(ModelRefused, match="nowhere"):
        engine.submit("import", IMPORT).result(120)


def test_a_cluster_that_nobody_reaches_keeps_a_coordinator_from_starting(tmp_path: Path) -> None:
    with pytest.raises(NotStarted) as refused:
        Coordinator.local(tmp_path, environment=ENVIRONMENT, engine=f"ray://127.0.0.1:{free_port()}")
    assert (refused.value.code, "cannot be used" in refused.value.message) == ("ray_unusable", True)
