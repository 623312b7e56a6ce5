"""Images as numbers: decodes and preprocesses the rows of an image classification, keeps them, and makes batches of them."""

import itertools
import json
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files import images
from fedcybgd.shared.files.configuration import image_shape, image_tokens
from fedcybgd.shared.files.preprocessing import Preprocessing, read_preprocessing
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.batches import Batch


class ImageRows:
    """Preprocessed images, a byte for each channel of a pixel, and their labels."""

    def __init__(self, encoder: "ImageEncoder") -> None:
        self._encoder = encoder
        self._file = tempfile.SpooledTemporaryFile(max_size=images.IN_MEMORY, prefix="fedcybgd-images-")  # noqa: SIM115 - lives as long as the rows
        self._size = encoder.row_bytes
        self.labels: Sequence[int] = array("i")

    def add(self, pixels: bytes, label: int) -> None:
        assert len(pixels) == self._size, "as large as every image"
        assert isinstance(self.labels, array)
        self._file.write(pixels)
        self.labels.append(label)

    def __len__(self) -> int:
        return len(self.labels)

    def length(self, _row: int) -> int:
        """Tokens of one row: all are alike."""
        return self._encoder.width

    def batch(self, rows: Sequence[int]) -> Batch:
        return self._encoder.collate([self._pixels(row) for row in rows], [self.labels[row] for row in rows])

    def tokens(self, _rows: Iterable[int]) -> None:
        """None: an image has patches, and no tokens that a table has rows for."""
        return

    @property
    def predicted_bytes(self) -> int:
        return 0

    def _pixels(self, row: int) -> bytearray:
        self._file.seek(row * self._size)
        return bytearray(self._file.read(self._size))


class ImageEncoder:
    """Encodes the images of one task as the preprocessor_config.json in `directory` says. Raises `ModelUnknown` where it cannot."""

    pad = None

    def __init__(self, directory: Path, _spec: TaskSpec) -> None:
        config = json.loads((directory / "config.json").read_text())
        self.preprocessing: Preprocessing = read_preprocessing(directory, config)
        self.channels, self.height, self.width_px = image_shape(config)
        self.width = image_tokens(config)
        self.row_bytes = self.channels * self.height * self.width_px
        self._values = _values(self.preprocessing, self.channels)

    def encoded(self, examples: Iterable[Row], _source: str = "the data", most: int | None = None) -> ImageRows:
        """All rows of `examples`, or the first `most`. Raises `DataError`, which names the row."""
        rows = ImageRows(self)
        for example in itertools.islice(examples, most):
            rows.add(self.preprocessing.pixels(example["image"], self.channels), example["label"])
        return rows

    def collate(self, pictures: Sequence[bytearray], labels: Sequence[int]) -> Batch:
        """`pixel_values` is (rows, channels, height, width), float32."""
        bytes_ = torch.stack([torch.frombuffer(picture, dtype=torch.uint8) for picture in pictures])
        pixels = bytes_.view(len(pictures), self.height, self.width_px, self.channels).permute(0, 3, 1, 2)
        values = torch.stack([self._values[channel][pixels[:, channel].long()] for channel in range(self.channels)], dim=1)
        mask = torch.ones(len(pictures), self.width, dtype=torch.int64)
        return Batch({"pixel_values": values}, mask, torch.tensor(labels))


def _values(preprocessing: Preprocessing, channels: int) -> torch.Tensor:
    """What the 256 values of a pixel's channel become, (channels, 256), float32: rounded where transformers' own processor rounds."""
    levels = torch.arange(256, dtype=torch.float64)
    if preprocessing.do_rescale:
        levels = levels * preprocessing.rescale_factor
    values = levels.float().expand(channels, 256)
    if not preprocessing.do_normalize:
        return values.contiguous()
    return (values - torch.tensor(preprocessing.image_mean)[:, None]) / torch.tensor(preprocessing.image_std)[:, None]
