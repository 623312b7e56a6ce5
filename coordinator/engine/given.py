"""The directory of a model that is to be imported: at a place, or of files that were uploaded."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload
from fedcybgd.coordinator.engine.model_directory import ModelDirectory, locate
from fedcybgd.coordinator.storage import EngineStore


@contextmanager
def given(store: EngineStore, payload: ImportPayload) -> Iterator[ModelDirectory]:
    """Uploaded files lie in it as links to their blobs, which are checked; nothing is copied. It is gone after the block."""
    if not payload.files:
        yield locate(payload.source)
        return
    with ExitStack() as held, store.scratch() as folder:
        blobs = [held.enter_context(store.localised(file.digest)).resolve() for file in payload.files]
        for file, blob in zip(payload.files, blobs, strict=True):
            (folder / file.name).symlink_to(blob)
        yield ModelDirectory(folder, called=payload.called or payload.source, beside=blobs)
