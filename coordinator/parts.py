"""What a coordinator is put together from: each part is a protocol, with a contract test for every implementation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fedcybgd.coordinator.jobs.engine import NewEngine
from fedcybgd.coordinator.jobs.engine_process import EngineProcess
from fedcybgd.coordinator.places import place_of
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobStore, Uploads, open_place, open_uploads
from fedcybgd.coordinator.wakes.base import Wakes
from fedcybgd.coordinator.wakes.local import LocalWakes
from fedcybgd.coordinator.wakes.postgres import PostgresWakes


@dataclass(frozen=True)
class Parts:
    store: BlobStore
    uploads: Uploads
    new_engine: NewEngine
    wakes: Wakes


MakeParts = Callable[[Settings], Parts]


def local(settings: Settings) -> Parts:
    """Blobs in a directory or in object storage, uploads in a directory, an engine process a lane; news within this process, or to all on one PostgreSQL database."""
    store = open_place(place_of(settings))
    engine = partial(EngineProcess, place_of(settings), settings.engine_threads, settings.engine_device)
    return Parts(store, open_uploads(settings.uploads, store), engine, wakes_of(settings.url))


def wakes_of(url: str) -> Wakes:
    """Where others may use the database too, it carries the news."""
    return PostgresWakes(url) if url.startswith("postgresql") else LocalWakes()
