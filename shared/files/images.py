"""Reads the images of rows: PNG and JPEG, bounded before anything of them is decoded."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.files.disk import unreadable

LARGEST = 32 << 20
"""Bytes of one image file."""
MOST_PIXELS = 1 << 26
"""Pixels of one image: 67 million; a decoded one takes three bytes each."""
FORMATS = ("PNG", "JPEG")
DEEP = ("I", "F")
"""First letters of the modes with more than eight bits a channel; a conversion would cut their values off at 255."""
IN_MEMORY = 64 << 20
"""Bytes of the pixels of all rows from which they lie in an unnamed file instead of in memory."""
CHANNELS = {1: "L", 3: "RGB"}


def bytes_on_disk(rows: int, each: int) -> int:
    """What the pixels of so many preprocessed images take of a disk, each of so many bytes."""
    return rows * each if rows * each > IN_MEMORY else 0


@dataclass(frozen=True)
class StoredImage:
    """One image of a row, still encoded: its bytes, or the file that has them. `where` is the row, for messages."""

    where: str
    data: bytes | None
    path: Path | None
    facts: Mapping[str, Any]

    def check(self) -> tuple[int, int]:
        """Width and height, from its header alone. Raises `DataError`."""
        with self._opened() as image:
            size: tuple[int, int] = image.size
            return size

    def decoded(self, channels: int) -> Any:
        """The image as Pillow's, upright, in grey (one channel) or in RGB. Raises `DataError`."""
        from PIL import ImageOps

        with self._opened() as image:
            try:
                return ImageOps.exif_transpose(image).convert(CHANNELS[channels])
            except Exception as error:  # what decoders raise is of many classes
                raise self.wrong(f"is damaged: {type(error).__name__}: {error}") from error

    def wrong(self, what: str) -> DataError:
        return DataError(f"{self.where}: the image {what}", **self.facts)

    def _opened(self) -> Any:
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError(f"{self.where} has an image, and Pillow is not installed here (the extra `images`)", **self.facts) from error
        data = self.encoded()
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise self.wrong(f"has more than {MOST_PIXELS:,} pixels") from error
        except Exception as error:
            raise self.wrong(f"is no {' or '.join(FORMATS)} file: it begins with {data[:8]!r}") from error
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise self.wrong(f"has {width:,} × {height:,} pixels; at most {MOST_PIXELS:,} are decoded")
        if image.mode.startswith(DEEP):
            raise self.wrong(f"has more than 8 bits a channel (mode {image.mode}); say how its values become 8 bits by converting it")
        return image

    def encoded(self) -> bytes:
        """Its file, as it is. Raises `DataError`."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                data = file.read(LARGEST + 1)
        except OSError as error:
            raise unreadable(error, f"{self.where}: the image cannot be read: {error.strerror}", **self.facts) from error
        if len(data) > LARGEST:
            raise self.wrong(f"has more than {LARGEST:,} bytes")
        return data


def stored_image(value: object, folder: Path | None, where: str, facts: Mapping[str, Any]) -> StoredImage:
    """The image that a value of a row means: bytes, {bytes, path} as the Hugging Face datasets format has it, or a path inside `folder`.

    Raises `DataError` for what is none, for a path that leads out of the folder, by a link too, and for one where no folder was named.
    """
    path: object = None
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, str):
        path, value = value, None
    image = StoredImage(where, value if isinstance(value, bytes) else None, None, facts)
    if image.data is not None:
        if len(image.data) > LARGEST:
            raise image.wrong(f"has {len(image.data):,} bytes; at most {LARGEST:,} are read")
        return image
    if not isinstance(path, str) or not path or "\0" in path:
        raise image.wrong("must be the bytes of a file, {bytes, path}, or a path")
    if folder is None:
        raise image.wrong(
            f"is a path ({path!r:.60}): name the folder that it is in, `images` under [data.NAME]; held-out rows need the bytes in a Parquet file"
        )
    return StoredImage(where, None, _inside(folder, path, image), facts)


def _inside(folder: Path, name: str, image: StoredImage) -> Path:
    root = folder.resolve()
    try:
        found = (root / name).resolve(strict=True)
    except OSError as error:
        raise unreadable(error, f"{image.where}: the image {name!r:.100} is not there", **image.facts) from error
    except (RuntimeError, ValueError) as error:
        raise image.wrong(f"{name!r:.100} is not there") from error
    if not found.is_relative_to(root):
        raise image.wrong(f"{name!r:.100} leads out of the folder {root}")
    if not found.is_file():
        raise image.wrong(f"{name!r:.100} is no file")
    return found
