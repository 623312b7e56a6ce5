"""`client.models`: base models."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fedcybgd.client import uploading
from fedcybgd.client.connection import DAY_S, Connection, segment
from fedcybgd.client.errors import CoordinatorAway, FileUnusable, ModelFailed, Refused
from fedcybgd.shared.contract.model_uploads import ModelUploadEntry, ModelUploadRequest, ModelUploadView, source_of
from fedcybgd.shared.contract.operators import ModelRequest, name_of
from fedcybgd.shared.contract.views import ModelView


def name_of_directory(path: Path) -> str:
    """What its model is called if nobody says: a link is called as it was given."""
    return name_of(os.path.normpath(path.absolute()))


class Models:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, source: str | Path, name: str | None = None, *, wait_s: float = DAY_S) -> ModelView:
        """Split a model into blocks, and wait until that is done.

        `source` is a directory on the coordinator's machine, or a hub id (owner/name or owner/name@revision); `name` is how runs
        call it, by default the last part of the source. With `wait_s=0` the answer comes at once; its state says `adding`.
        Raises `FileUnusable`, `ModelFailed`, `TimedOut`, `Refused`.
        """
        path, called = Path(source).expanduser(), name_of(str(source))
        if path.is_file():
            text = f"{source} is a file: give the directory that it lies in, with config.json and the tokenizer beside the weights"
            raise FileUnusable(text)
        if path.exists():
            source, called = path.resolve(), name_of_directory(path)
        begun = self.begin(str(source), name or called)
        return self.wait(begun.name, timeout_s=wait_s) if wait_s else begun

    def begin(self, source: str, name: str) -> ModelView:
        """Have a model split into blocks; `source` is taken as the coordinator's machine understands it. Raises `Refused`."""
        return self._connection.do(ModelView, "/models", ModelRequest.model_construct(name=name, source=source))

    def upload(
        self, directory: str | Path, name: str | None = None, *, wait_s: float = DAY_S, told: uploading.Told | None = None
    ) -> ModelView:
        """Send a model of this machine to the coordinator, have it split into blocks, and wait until that is done.

        Of the directory go config.json, the tokenizer's files and *.safetensors. What has arrived is kept: after a cut, also of either
        program, the same call goes on there. `name` is by default that of the directory; `told` hears how far it is. With `wait_s=0` the
        answer comes when all has arrived; its state says `adding`.
        Raises `FileUnusable`, `ModelFailed`, `TimedOut`, `CoordinatorAway`, `Refused` (`model_name_taken`, `model_files_refused`, …).
        """
        given, told = Path(directory).expanduser(), told or (lambda _: None)
        folder = given.resolve()
        asked = uploading.announced(folder, name or name_of_directory(given), told)
        try:
            # It may be repeated: the same files are the same upload.
            view = self._connection.patiently(lambda: self._connection.do(ModelUploadView, "/model-uploads", asked))
            uploading.send(self._connection, folder, view, told)
            begun = self._add_upload(view.id)
        except Refused as error:
            if error.code not in ("model_name_taken", "not_found") or not self._is_of(asked):
                raise
            begun = self.get(asked.name)  # it was added before
        return self.wait(begun.name, timeout_s=wait_s) if wait_s else begun

    def _is_of(self, asked: ModelUploadRequest) -> bool:
        return any(model.name == asked.name and model.source == source_of(asked.upload_id()) for model in self.list())

    def _add_upload(self, upload_id: str) -> ModelView:
        path = f"/model-uploads/{segment(upload_id)}/add"
        try:
            return self._connection.do(ModelView, path)
        except CoordinatorAway:
            # Whether it was heard nobody knows; what was is refused as taken, and looked at then.
            return self._connection.patiently(lambda: self._connection.do(ModelView, path))

    def uploads(self) -> Iterator[ModelUploadEntry]:
        """The uploads under way, the newest first."""
        return self._connection.pages(ModelUploadEntry, "/model-uploads")

    def get_upload(self, upload_id: str) -> ModelUploadView:
        """What has arrived of each file. Raises `Refused` with `not_found`."""
        return self._connection.read(ModelUploadView, f"/model-uploads/{segment(upload_id)}")

    def discard_upload(self, upload_id: str) -> None:
        """Forget an upload, and what has arrived of it. Raises `Refused` with `not_found`."""
        self._connection.send("POST", f"/model-uploads/{segment(upload_id)}/delete")

    def wait(self, name: str, *, timeout_s: float = DAY_S, told: Callable[[ModelView], None] | None = None) -> ModelView:
        """The model, once it is ready. `told` hears each look at one that is not; its `reason` says what it waits for. Raises `ModelFailed`, `TimedOut`."""

        def is_added(model: ModelView) -> bool:
            if model.state == "adding" and told is not None:
                told(model)
            return model.state != "adding"

        model = self._connection.wait(lambda: self.get(name), is_added, limit=timeout_s)
        if model.state != "ready":
            raise ModelFailed(f"model {model.name} was not added: {model.reason}", name=name)
        return model

    def get(self, name: str) -> ModelView:
        """One model with its blocks. Raises `Refused` with `not_found`."""
        return self._connection.read(ModelView, f"/models/{segment(name)}")

    def delete(self, name: str) -> None:
        """Delete a model that no run is of, also one that waits to be added. Raises `Refused` (`model_in_use`)."""
        self._connection.send("POST", f"/models/{segment(name)}/delete")

    def list(self) -> Iterator[ModelView]:
        """All models by name."""
        return self._connection.pages(ModelView, "/models")
