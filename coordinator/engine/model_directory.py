"""A directory that somebody supplied as a model: only files inside it are read, and only of sensible size."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.files.configuration import in_a_line
from fedcybgd.shared.files.stand_ins import HEAD, pointer, stand_in

MIB = 1 << 20
LARGEST_CONFIG = 16 * MIB
LARGEST_TEXT = 128 * MIB
"""of a tokenizer's file: the largest that are published have about 60 MiB"""
NO_FILES = ("/proc", "/sys", "/dev")
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


class ModelRefused(Invalid):
    code = "model_refused"


def is_within(name: str) -> bool:
    """Whether a file of this name lies in the directory, or in one inside it."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


class ModelDirectory:
    """The files of one model, by name. Links are followed inside the directory, to the blobs of the hub's cache and to `beside`, no further."""

    def __init__(self, path: Path, called: str = "", beside: Sequence[Path] = ()) -> None:
        """`called`: what people call it, by default its path."""
        self.path = path
        self._called = called or str(path)
        self._root = path.resolve()
        if any(self._root.is_relative_to(place) for place in NO_FILES):
            raise ModelRefused(f"{path} is no place for a model")
        # The hub's cache holds snapshots/REVISION/NAME as links to blobs/DIGEST.
        cache = self._root.parent.parent / "blobs" if self._root.parent.name == "snapshots" else None
        self._allowed = [self._root, *([cache] if cache is not None else []), *beside]

    def __str__(self) -> str:
        return self._called

    def place(self, name: str) -> str:
        """Where a file lies, for people."""
        return f"{self}/{name}"

    def names(self, *patterns: str) -> list[str]:
        """What lies in the directory under names that match, sorted; it may be anything but a directory."""
        return sorted({p.name for pattern in patterns for p in self.path.glob(pattern) if not p.is_dir()})

    def directories_with(self, name: str) -> list[str]:
        """The directories inside it that have a file called `name`, sorted: one level down, or where the hub's cache has snapshots."""
        return sorted(
            str(p.parent.relative_to(self.path)) for pattern in (f"*/{name}", f"snapshots/*/{name}") for p in self.path.glob(pattern)
        )

    def has(self, name: str) -> bool:
        place = self.path / name
        return place.is_symlink() or place.exists()

    def file(self, name: str) -> Path:
        """The regular file that is called `name`, which may lie in a directory inside. Raises `ModelRefused` for one that is not there, is none, or lies elsewhere."""
        if not is_within(name):
            raise ModelRefused(f"{self}: {name} is no name of a file in this directory")
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ModelRefused(f"{self}: the name of {name} is no UTF-8; give it another, or take it out")
        place = self.path / name
        try:
            real = place.resolve(strict=True)
            what = real.stat()
        except (OSError, RuntimeError) as error:
            raise ModelRefused(
                f"{self.place(name)} cannot be read: {'its link leads nowhere' if place.is_symlink() else 'it is not there'}"
            ) from error
        if not any(real.is_relative_to(root) for root in self._allowed):
            raise ModelRefused(f"{self.place(name)} is a link that leads out of the model's directory; copy the file into it")
        if not stat.S_ISREG(what.st_mode):
            raise ModelRefused(f"{self.place(name)} is no regular file")
        with real.open("rb") as file:
            if (what_else := pointer(file.read(HEAD))) is not None:
                raise ModelRefused(f"{self.place(name)} is {what_else}")
        return real

    def text(self, name: str, most: int = LARGEST_TEXT) -> bytes:
        """The bytes of a file that is no weights. Raises `ModelRefused` when they are more than `most`."""
        path = self.file(name)
        if path.stat().st_size > most:
            raise ModelRefused(f"{self.place(name)} has {path.stat().st_size:,} bytes; at most {most:,} are read")
        with path.open("rb") as file:
            return file.read(most)

    def json(self, name: str, most: int = LARGEST_CONFIG) -> dict[str, Any]:
        text = self.text(name, most)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            what = (
                (stand_in(text[:HEAD]) if not text.lstrip().startswith((b"{", b"[")) else in_a_line(error))
                if text.strip()
                else "it is empty"
            )
            raise ModelRefused(f"{self.place(name)} is no JSON{f': {what}' if what else ''}") from error
        if not isinstance(value, dict):
            raise ModelRefused(f"{self.place(name)} is no JSON object")
        return value

    def store(self, store: EngineStore, name: str) -> FileRef:
        digest, size = write_blob(store, self.text(name))
        return FileRef(name=name, digest=digest, size=size)


def locate(source: str) -> ModelDirectory:
    """The local directory of a model: the path itself, or what the hub gives for an id like `owner/name[@revision]`."""
    path = Path(source).expanduser()
    if path.is_dir():
        return ModelDirectory(path)
    if path.is_file():
        raise ModelRefused(
            f"{source} is a file: give the directory that it lies in, unpacked, with config.json and the tokenizer beside the weights"
        )
    nowhere = f"{source} is no directory on the coordinator's machine"
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelRefused(f"{nowhere}, and no hub id (owner/name); one of another machine is sent with `fedcoord models upload`")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelRefused(
            f"{nowhere}, and as a hub id it needs huggingface_hub: pip install '.[hub]' in a checkout of this project"
        ) from error
    name, _, revision = source.partition("@")
    try:
        return ModelDirectory(Path(snapshot_download(name, revision=revision or None, allow_patterns=list(HUB_FILES))))
    except Exception as error:
        raise ModelRefused(f"{nowhere}, and as a hub id the hub did not give it: {type(error).__name__}: {error}") from error
