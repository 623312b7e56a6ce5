"""`client.models`: base models."""

from collections.abc import Iterator
from pathlib import Path

from fedcybgd.client.connection import DAY_S, Connection, segment
from fedcybgd.client.errors import ModelFailed
from fedcybgd.shared.contract.operators import ModelRequest, name_of
from fedcybgd.shared.contract.views import ModelView


class Models:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, source: str | Path, name: str | None = None, *, wait_s: float = DAY_S) -> ModelView:
        """Split a model into blocks, and wait until that is done.

        `source` is a directory on the coordinator's machine, or a hub id (owner/name or owner/name@revision); `name` is how runs
        call it, by default the last part of the source. With `wait_s=0` the answer comes at once; its state says `adding`.
        Raises `ModelFailed`, `TimedOut`, `Refused`.
        """
        path = Path(source).expanduser()
        if path.exists():
            source = path.resolve()
        begun = self.begin(str(source), name or name_of(str(source)))
        return self.wait(begun.name, timeout_s=wait_s) if wait_s else begun

    def begin(self, source: str, name: str) -> ModelView:
        """Have a model split into blocks; `source` is taken as the coordinator's machine understands it. Raises `Refused`."""
        return self._connection.do(ModelView, "/models", ModelRequest.model_construct(name=name, source=source))

    def wait(self, name: str, *, timeout_s: float = DAY_S) -> ModelView:
        """The model, once it is ready. Raises `ModelFailed`, `TimedOut`."""
        model = self._connection.wait(lambda: self.get(name), lambda m: m.state != "adding", limit=timeout_s)
        if model.state != "ready":
            raise ModelFailed(f"{model.source} was not added: {model.reason}", name=name)
        return model

    def get(self, name: str) -> ModelView:
        """One model with its blocks. Raises `Refused` with `not_found`."""
        return self._connection.read(ModelView, f"/models/{segment(name)}")

    def delete(self, name: str) -> None:
        """Delete a model that no run is of. Raises `Refused` (`model_in_use`)."""
        self._connection.send("POST", f"/models/{segment(name)}/delete")

    def list(self) -> Iterator[ModelView]:
        """All models by name."""
        return self._connection.pages(ModelView, "/models")
