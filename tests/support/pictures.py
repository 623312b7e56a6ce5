"""Small images as files, and files of rows that have them."""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIDES = ((8, 8), (13, 9), (5, 20))


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG", **how: Any) -> bytes:
    """A file with an image of random pixels, bright at the top where `number` is even, else at the bottom."""
    from PIL import Image

    drawn, (width, height) = random.Random(number), size
    channels = len(Image.new(mode, (1, 1)).getbands())
    bright = [(row < height / 2) == (number % 2 == 0) for row in range(height)]
    pixels = bytes(drawn.randrange(120) + 120 * light for light in bright for _ in range(width * channels))
    file = io.BytesIO()
    Image.frombytes(mode, size, pixels).save(file, kind, **how)
    return file.getvalue()


def rows(number: int) -> list[dict[str, Any]]:
    """Rows of a data set as the Hugging Face datasets have them: half of them bright at the top."""
    return [{"image": {"bytes": picture(i, SIDES[i % 3]), "path": f"{i}.png"}, "label": i % 2} for i in range(number)]


def parquet(path: Path, values: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(values)), path)
    return path


def beside(folder: Path, values: Sequence[dict[str, Any]]) -> Path:
    """The same rows as JSON Lines that name files of a folder `images`."""
    (folder / "images").mkdir()
    lines = []
    for row in values:
        (folder / "images" / row["image"]["path"]).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"image": row["image"]["path"], "label": row["label"]}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
