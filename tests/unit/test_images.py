"""Images of rows are bounded before they are decoded, and become what transformers' own processors make of them."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from fedcybgd.agent.messages import DataSource
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.errors import DiskFilled
from fedcybgd.agent.training.failures import failure_of
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files import images
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.files.images import StoredImage
from fedcybgd.shared.files.preprocessing import preprocessing_of
from fedcybgd.shared.files.tables import examples
from fedcybgd.shared.models.image_rows import ImageEncoder
from tests.support.pictures import beside, parquet, picture, rows

TWO = TaskSpec(task="image-classification", num_labels=2, max_length=128)
NAME = "preprocessor_config.json"


def read(path: Path, folder: Path | None = None, **columns: str) -> list[dict[str, Any]]:
    return list(examples(path, TWO, columns, images=folder))


# ---- preprocessing ----

SMALL: dict[str, dict[str, Any]] = {
    "vit/ViTImageProcessorPil": {"size": {"height": 8, "width": 8}},
    "deit/DeiTImageProcessorPil": {"size": {"height": 11, "width": 11}, "crop_size": {"height": 8, "width": 8}},
    "beit/BeitImageProcessorPil": {"size": {"height": 8, "width": 8}},
    "siglip/SiglipImageProcessorPil": {"size": {"height": 8, "width": 8}},
    "convnext/ConvNextImageProcessorPil": {"size": {"shortest_edge": 8}, "crop_pct": 0.7},
    "bit/BitImageProcessorPil": {"size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 8}},
    "clip/CLIPImageProcessorPil": {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "do_normalize": False},
    "bit/BitImageProcessorPil ": {"do_resize": False, "crop_size": {"height": 8, "width": 8}, "do_rescale": False},
}


@pytest.mark.parametrize("name", SMALL)
def test_pixels_are_those_of_transformers_own_processor(name: str, tmp_path: Path) -> None:
    family, _, kind = name.strip().partition("/")
    module = __import__(f"transformers.models.{family}.image_processing_pil_{family}", fromlist=[kind])
    processor = getattr(module, kind)(**SMALL[name])
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "image_size": 8, "patch_size": 4}))
    files = [picture(i, size) for i, size in enumerate([(8, 8), (13, 9), (5, 20), (31, 6), (64, 48)])]
    given = [{"image": StoredImage("row", data, None, {}), "label": 0} for data in files]
    ours = ImageEncoder(tmp_path, TWO).encoded(given).batch(range(len(files))).inputs["pixel_values"]
    for file, found in zip(files, ours, strict=True):
        expected = processor(Image.open(io.BytesIO(file)), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(found, expected.float()), name


def test_what_a_file_leaves_out_is_what_transformers_takes() -> None:
    config = {"model_type": "vit", "image_size": 224}
    found = preprocessing_of({"do_normalize": True, "size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, config)
    theirs = transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil()
    assert (found.resample, found.rescale_factor) == (theirs.resample, theirs.rescale_factor)
    crop = preprocessing_of({"feature_extractor_type": "DeiTFeatureExtractor"}, {"model_type": "deit", "image_size": 224})
    assert (crop.size.height, crop.shape) == (256, (224, 224))


def test_colours_are_those_of_the_model(tmp_path: Path) -> None:
    grey, clear = picture(0, mode="L"), picture(1, mode="RGBA")
    for channels in (1, 3):
        values = {"size": 8, "image_mean": [0.5] * channels, "image_std": [0.5] * channels}
        (tmp_path / NAME).write_text(json.dumps(values))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 8, "num_channels": channels}))
        given = [{"image": StoredImage("row", data, None, {}), "label": 0} for data in (grey, clear)]
        batch = ImageEncoder(tmp_path, TWO).encoded(given).batch([0, 1])
        assert batch.inputs["pixel_values"].shape == (2, channels, 8, 8)


@pytest.mark.parametrize(
    ("values", "config", "said"),
    [
        ({"image_processor_type": "SamImageProcessor"}, {}, "'SamImageProcessor' is none of the image processors that are known"),
        ({"size": 9}, {}, "makes 9 × 9 pixels, and config.json has an image_size of 8 × 8"),
        ({"do_resize": False}, {}, "makes no one size"),
        ({"size": 100_000}, {}, "size.height: must be 2048 or less"),
        ({"size": {"longest_edge": 3}}, {}, "needs height and width, or shortest_edge"),
        ({"image_std": [0.5, 0.0, 0.5]}, {}, "image_std: must be above 0"),
        ({"image_mean": [0.5]}, {}, "image_mean and image_std need 3 numbers"),
        ({"resample": 77}, {}, "resample"),
        ({"do_pad": True}, {}, "do_pad"),
        ({}, {"num_channels": 4}, "num_channels is 4; images have 1 or 3"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(values: dict[str, Any], config: dict[str, Any], said: str) -> None:
    usual = {"image_processor_type": "ViTImageProcessor", "size": 8}
    with pytest.raises(ModelUnknown) as refused:
        preprocessing_of(usual | values, {"model_type": "vit", "image_size": 8} | config)
    assert said in refused.value.message


# ---- rows ----


def test_the_same_rows_are_read_of_every_format(tmp_path: Path) -> None:
    values = rows(4)
    lines = beside(tmp_path, values)
    table = tmp_path / "rows.csv"
    table.write_text("file_name,label\n" + "".join(f"{row['image']['path']},{row['label']}\n" for row in values))
    plain = parquet(tmp_path / "plain.parquet", [{"image": row["image"]["bytes"], "label": row["label"]} for row in values])
    named = parquet(
        tmp_path / "named.parquet", [{"image": {"bytes": None, "path": r["image"]["path"]}, "label": r["label"]} for r in values]
    )
    folder = tmp_path / "images"
    found = [
        read(parquet(tmp_path / "both.parquet", values)), read(plain), read(named, folder), read(lines, folder),
        read(table, folder, image="file_name"),
    ]  # fmt: skip
    decoded = [[(row["image"].decoded(3).tobytes(), row["label"]) for row in one] for one in found]
    assert len(decoded[0]) == 4
    assert all(one == decoded[0] for one in decoded)


def header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and has next to nothing in it."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 99) + b"IDAT"


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "many pixels": (lambda: header(9_000, 8_000), "has 9,000 × 8,000 pixels; at most 67,108,864 are decoded"),
    "a bomb": (lambda: header(60_000, 60_000), "has more than 67,108,864 pixels"),
    "no image": (lambda: b"GIF89a" + bytes(20), "is no PNG or JPEG file"),
    "nothing": (lambda: b"", "is no PNG or JPEG file"),
    "sixteen bits": (lambda: _sixteen_bits(), "has more than 8 bits a channel (mode I;16)"),
    "many bytes": (lambda: bytes(images.LARGEST + 1), "has 5,001 bytes; at most 5,000 are read"),
    "a number": (lambda: 7, "must be the bytes of a file, {bytes, path}, or a path"),
}


def _sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.frombytes("I;16", (2, 2), bytes(8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("what", BAD)
def test_an_image_that_cannot_be_had_is_named_with_its_row(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST", 5_000)
    make, said = BAD[what]
    path = parquet(tmp_path / "rows.parquet", [{"image": make(), "label": 0}])
    with pytest.raises(DataError) as refused:
        read(path)
    assert refused.value.code == "data_invalid"
    assert said in refused.value.message
    assert refused.value.message.startswith("rows.parquet row 1: the image ")
    assert (refused.value.detail["row"], refused.value.detail["field"]) == (1, "image")


PATHS = {
    "../rows.jsonl": "leads out of the folder",
    "/etc/hostname": "leads out of the folder",
    "link.png": "leads out of the folder",
    "within/../../rows.jsonl": "leads out of the folder",
    "none.png": "is not there",
    ".": "is no file",
    "a\0b": "must be the bytes of a file",
    "": "must be the bytes of a file",
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    beside(tmp_path, rows(1))
    (tmp_path / "images" / "within").mkdir()
    (tmp_path / "secret.png").write_bytes(picture(0))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images" / "inner.png").symlink_to("0.png")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "inner.png", "label": 1}) + "\n" + json.dumps({"image": name, "label": 1}) + "\n")
    with pytest.raises(DataError) as refused:
        read(path, tmp_path / "images")
    assert PATHS[name] in refused.value.message
    assert refused.value.detail["row"] == 2


def test_a_path_needs_a_folder_that_its_owner_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: the image is a path \('0.png'\): name the folder"):
        read(beside(tmp_path, rows(1)))


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_a_damaged_image_is_named_when_it_is_decoded(cut: float, tmp_path: Path) -> None:
    whole = picture(0, (40, 40))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 8}))
    (tmp_path / NAME).write_text(json.dumps({"size": 8}))
    path = parquet(tmp_path / "rows.parquet", [{"image": picture(1), "label": 1}, {"image": whole[: int(len(whole) * cut)], "label": 0}])
    with pytest.raises(DataError, match=r"rows.parquet row 2: the image is damaged") as refused:
        ImageEncoder(tmp_path, TWO).encoded(examples(path, TWO, {}))
    assert refused.value.detail["row"] == 2


def test_an_image_that_resizing_would_blow_up_is_refused() -> None:
    narrow = preprocessing_of({"size": 224}, {"model_type": "dinov2", "image_size": 224})
    image = StoredImage("row 1", picture(0, (1, 2000)), None, {})
    with pytest.raises(DataError, match="row 1: the image is too narrow: 1 × 2,000 pixels would become 224 × 448,000"):
        narrow.pixels(image, 3)


def test_an_image_is_turned_upright() -> None:
    on_its_side = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    on_its_side.save(file, "JPEG", exif=exif)
    assert StoredImage("row", file.getvalue(), None, {}).decoded(3).size == (2, 4)


def test_more_pixels_than_the_disk_may_take_are_refused_before_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 8}))
    (tmp_path / NAME).write_text(json.dumps({"size": 8}))
    monkeypatch.setattr("fedcybgd.shared.files.images.IN_MEMORY", 400)
    source = DataSource(path=str(parquet(tmp_path / "rows.parquet", rows(6))))
    of_all = 6 * 3 * 8 * 8
    assert Partition(source, tmp_path, TWO, of_all).rows == 6
    with pytest.raises(DiskFilled, match=r"pixels of 6 images and more; limits\.disk_gb leaves them") as failed:
        Partition(source, tmp_path, TWO, of_all - 1)
    assert failure_of(failed.value, None).reason == "disk_limit"
    monkeypatch.setattr("fedcybgd.shared.files.images.IN_MEMORY", of_all)
    assert Partition(source, tmp_path, TWO, 0).rows == 6, "in memory"


def test_pixels_lie_in_a_file_from_a_size_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 8}))
    (tmp_path / NAME).write_text(json.dumps({"size": 8}))
    path = parquet(tmp_path / "rows.parquet", rows(6))
    in_memory = ImageEncoder(tmp_path, TWO).encoded(read(path))
    monkeypatch.setattr("fedcybgd.shared.files.images.IN_MEMORY", 400)
    on_disk = ImageEncoder(tmp_path, TWO).encoded(read(path))
    order = [5, 0, 3]
    assert torch.equal(in_memory.batch(order).inputs["pixel_values"], on_disk.batch(order).inputs["pixel_values"])
    assert on_disk.batch(order).labels.tolist() == [1, 0, 1]
