"""What a coordinator is put together from: each part is a protocol, with a contract test for every implementation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fedcybgd.coordinator.bucket_uploads import BucketUploads
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.jobs.engine import NewEngine
from fedcybgd.coordinator.jobs.engine_process import EngineProcess, check_shared_memory
from fedcybgd.coordinator.jobs.ray_cluster import RayCluster
from fedcybgd.coordinator.jobs.ray_engine import RayEngine
from fedcybgd.coordinator.places import place_of
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobStore, EngineStore, Uploads, open_place, open_uploads, reach
from fedcybgd.coordinator.wakes.base import Wakes
from fedcybgd.coordinator.wakes.local import LocalWakes
from fedcybgd.coordinator.wakes.postgres import PostgresWakes


@dataclass(frozen=True)
class Parts:
    store: BlobStore
    uploads: Uploads
    new_engine: NewEngine
    wakes: Wakes


MakeParts = Callable[[Settings, Database], Parts]


def local(settings: Settings, database: Database) -> Parts:
    """Blobs and uploads in a directory or object storage, an engine process a lane or a Ray cluster; news within this process, or to all on one PostgreSQL database."""
    place = place_of(settings)
    store = open_place(place)
    return Parts(store, uploads_of(settings, database, store), engine_of(settings), wakes_of(settings.url))


def engine_of(settings: Settings) -> NewEngine:
    """Where there are jobs to do, raises `SharedMemoryMissing`; or, of a cluster that is named and cannot do them, `RayUnusable` or `RayNodeUnfit`."""
    place, threads, device = place_of(settings), settings.engine_threads, settings.engine_device
    if settings.engine is None or not settings.own_lanes:
        if settings.own_lanes:
            check_shared_memory()
        return partial(EngineProcess, place, threads, device)
    cluster = RayCluster(settings.engine, place, threads, device)
    cluster.check()
    return partial(RayEngine, cluster)


def uploads_of(settings: Settings, database: Database, store: EngineStore) -> Uploads:
    """Where the blobs are."""
    if settings.storage is None:
        return open_uploads(settings.uploads, store)
    return BucketUploads(database, reach(settings.storage), store)


def wakes_of(url: str) -> Wakes:
    """Where others may use the database too, it carries the news."""
    return PostgresWakes(url) if url.startswith("postgresql") else LocalWakes()
