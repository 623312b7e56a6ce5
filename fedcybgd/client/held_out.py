"""`client.held_out`: the files that models are scored on."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fedcybgd.client.connection import Connection, segment
from fedcybgd.client.errors import FileUnusable
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.operators import HeldOutView

CHUNK = 1 << 20


def check_held_out(path: Path) -> None:
    """Raises `FileUnusable` for what is no file."""
    if path.is_dir():
        raise FileUnusable(f"evaluate.held_out: {path} is a directory; name the file of rows in it")
    if not path.is_file():
        raise FileUnusable(f"evaluate.held_out: there is no file {path}")


class HeldOutFiles:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upload(self, path: Path | str) -> str:
        """Upload a held-out file; its digest. The same bytes may be uploaded again. Raises `FileUnusable`, `Refused`."""
        path = Path(path).expanduser()
        check_held_out(path)
        digest, size = digest_of_file(path), path.stat().st_size

        def send(file: Path) -> None:
            with file.open("rb") as opened:
                body = iter(lambda: opened.read(CHUNK), b"")
                self._connection.send("PUT", f"/held-out/{digest}", params={"name": file.name}, content=body, size=size)

        self._connection.patiently(partial(send, path))
        return digest

    def list(self) -> Iterator[HeldOutView]:
        """All held-out files, the newest first."""
        return self._connection.pages(HeldOutView, "/held-out")

    def delete(self, digest: str) -> None:
        """Delete a file that no run is scored on. Raises `Refused` (`held_out_in_use`)."""
        self._connection.send("POST", f"/held-out/{segment(digest)}/delete")
