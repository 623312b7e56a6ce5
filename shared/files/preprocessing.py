"""What becomes of an image before a model sees it, as the model's preprocessor_config.json says: size and cut, then numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedcybgd.shared.contract.words import problem_in_words
from fedcybgd.shared.files.configuration import ModelUnknown, image_shape
from fedcybgd.shared.files.images import MOST_PIXELS, StoredImage

FILE = "preprocessor_config.json"
Side = Annotated[int, Field(ge=1, le=2048)]
Numbers = Annotated[list[float], Field(min_length=1, max_length=3)]
HALF, CLIP_MEAN, CLIP_STD = [0.5] * 3, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BILINEAR, BICUBIC = 2, 3
SQUARE = {"size": 224, "resample": BICUBIC, "image_mean": HALF, "image_std": HALF}
CROPPED = {
    "size": 224, "square": False, "resample": BICUBIC, "do_center_crop": True, "crop_size": 224, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "ViT": SQUARE | {"resample": BILINEAR},
    "DeiT": SQUARE | {"size": 256, "do_center_crop": True, "crop_size": 224},
    "Beit": SQUARE,
    "Siglip": SQUARE,
    "ConvNext": SQUARE | {"size": 384, "square": False, "crop_pct": 224 / 256},
    "Bit": CROPPED,
    "CLIP": CROPPED,
}
"""Image processors of transformers that are known, by the beginning of their names, with what they do where the file does not say."""
OF_TYPES = {
    "vit": "ViT", "vit_msn": "ViT", "ijepa": "ViT", "swin": "ViT", "swinv2": "ViT", "deit": "DeiT", "beit": "Beit", "data2vec-vision": "Beit",
    "convnext": "ConvNext", "convnextv2": "ConvNext", "dinov2": "Bit", "dinov2_with_registers": "Bit", "clip": "CLIP", "siglip": "Siglip",
}  # fmt: skip
"""Which of them transformers takes for a type of model whose file names none."""
ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
WARPED = 384
"""Shortest edge from which ConvNext's processor makes a square of the whole image instead of cutting one out of it."""


class Size(BaseModel):
    """Of what an image is resized or cut to: both sides, or the shorter one alone."""

    height: Side | None = None
    width: Side | None = None
    shortest_edge: Side | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> "Size":
        sides = self.height is not None and self.width is not None
        if sides == (self.shortest_edge is not None):
            raise ValueError("needs height and width, or shortest_edge")
        return self


class Preprocessing(BaseModel):
    """The same as transformers' own image processor with Pillow, but for colours: an image has the channels of the model, always."""

    model_config = ConfigDict(frozen=True)
    kind: str
    square: bool = True
    """whether a size of one number means both sides"""
    do_resize: bool = True
    size: Size
    resample: int = Field(ge=0, le=5, description="Pillow's number of the filter")
    do_center_crop: bool = False
    crop_size: Size | None = None
    crop_pct: float | None = Field(None, gt=0.1, le=1)
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Numbers
    image_std: Numbers

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_one_number(cls, values: Any) -> Any:
        one = "shortest_edge" if values.get("square") is False else None
        found = dict(values)
        for name, shortest in (("size", one), ("crop_size", None)):
            if isinstance(number := found.get(name), int):
                found[name] = {shortest: number} if shortest else {"height": number, "width": number}
        return found

    @field_validator("image_std")
    @classmethod
    def _is_divided_by(cls, value: list[float]) -> list[float]:
        if not all(number > 0 for number in value):
            raise ValueError("must be above 0")
        return value

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None where they depend on the image."""
        if self.do_center_crop and self.crop_size is not None:
            return (self.crop_size.height or 0, self.crop_size.width or 0)
        if not self.do_resize:
            return None
        if self.crop_pct is not None and self.size.shortest_edge is not None:
            return (self.size.shortest_edge, self.size.shortest_edge)
        return (self.size.height, self.size.width) if self.size.height and self.size.width else None

    def pixels(self, image: StoredImage, channels: int) -> bytes:
        """The image resized and cut: bytes by row, column, channel. Raises `DataError`."""
        found = image.decoded(channels)
        if self.do_resize:
            found = self._resized(found, image)
        if self.do_center_crop and self.crop_size is not None:
            found = _cut(found, self.crop_size.height or 0, self.crop_size.width or 0)
        data: bytes = found.tobytes()
        return data

    def _resized(self, found: Any, image: StoredImage) -> Any:
        short = self.size.shortest_edge
        if self.crop_pct is not None and short is not None:
            if short >= WARPED:
                return found.resize((short, short), self.resample)
            return _cut(self._to_edge(found, int(short / self.crop_pct), image), short, short)
        if short is not None:
            return self._to_edge(found, short, image)
        return found.resize((self.size.width, self.size.height), self.resample)

    def _to_edge(self, found: Any, edge: int, image: StoredImage) -> Any:
        width, height = found.size
        longer = int(edge * max(width, height) / min(width, height))
        if edge * longer > MOST_PIXELS:
            raise image.wrong(f"is too narrow: {width:,} × {height:,} pixels would become {edge:,} × {longer:,}")
        return found.resize((edge, longer) if width <= height else (longer, edge), self.resample)


def _cut(found: Any, height: int, width: int) -> Any:
    """The middle of an image; what lies outside of it is black."""
    wide, high = found.size
    left, top = _begin(wide, width), _begin(high, height)
    return found.crop((left, top, left + width, top + height))


def _begin(whole: int, part: int) -> int:
    return (whole - part) // 2


def preprocessing_of(values: Mapping[str, Any], config: Mapping[str, Any]) -> Preprocessing:
    """Of the contents of a preprocessor_config.json, for the model of a config.json. Raises `ModelUnknown`, which says what is wrong."""
    usual = OF_TYPES.get(str(config.get("model_type")), "")
    named = values.get("image_processor_type") or values.get("feature_extractor_type") or f"{usual}ImageProcessor"
    kind = next((k for k in KINDS if isinstance(named, str) and named.removeprefix(k) in ENDINGS), None)
    if kind is None:
        raise ModelUnknown(f"{FILE}: {named!r:.60} is none of the image processors that are known: those of {', '.join(KINDS)}")
    if values.get("do_pad"):
        raise ModelUnknown(f"{FILE}: do_pad is not known for the image classification of {kind}")
    own = {name: value for name, value in values.items() if name in Preprocessing.model_fields and value is not None}
    try:
        found = Preprocessing.model_validate({**KINDS[kind], **own, "kind": kind})
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelUnknown(f"{FILE}: {'.'.join(map(str, first['loc'])) or 'size'}: {problem_in_words(first)}") from error
    channels, height, width = image_shape(config)
    if channels not in (1, 3):
        raise ModelUnknown(f"config.json: num_channels is {channels}; images have 1 or 3")
    if found.shape != (height, width):
        made = "no one size" if found.shape is None else f"{found.shape[0]} × {found.shape[1]} pixels"
        raise ModelUnknown(f"{FILE} makes {made}, and config.json has an image_size of {height} × {width}")
    if found.do_normalize and not len(found.image_mean) == len(found.image_std) == channels:
        raise ModelUnknown(f"{FILE}: image_mean and image_std need {channels} numbers, one for each channel")
    return found


def read_preprocessing(folder: Path, config: Mapping[str, Any]) -> Preprocessing:
    """The same from a directory of a model's files. Raises `ModelUnknown`."""
    try:
        values = json.loads((folder / FILE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnknown(f"this model has no {FILE} that can be read: what becomes of images is not known") from error
    if not isinstance(values, dict):
        raise ModelUnknown(f"{FILE} is no JSON object")
    return preprocessing_of(values, config)
