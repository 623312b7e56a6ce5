"""What a coordinator is put together from: each part is a protocol, with one implementation today and a contract test for the next."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fedcybgd.coordinator.jobs.engine import NewEngine
from fedcybgd.coordinator.jobs.engine_process import EngineProcess
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobStore, Uploads, open_store, open_uploads
from fedcybgd.coordinator.wakes.base import Wakes
from fedcybgd.coordinator.wakes.local import LocalWakes


@dataclass(frozen=True)
class Parts:
    store: BlobStore
    uploads: Uploads
    new_engine: NewEngine
    wakes: Wakes


MakeParts = Callable[[Settings], Parts]


def local(settings: Settings) -> Parts:
    """All on this machine: blobs and uploads in the home, an engine process a lane, news within this process."""
    store = open_store(settings.blobs)
    engine = partial(EngineProcess, settings.blobs, settings.engine_threads)
    return Parts(store, open_uploads(settings.uploads, store), engine, LocalWakes())
