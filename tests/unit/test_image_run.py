"""A vision transformer goes the whole way: added, prepared, visited among quantized blocks, scored, exported as transformers loads it."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, FidelityPayload, HeldOutRef, InfluencePayload
from fedcybgd.coordinator.domain.jobs.payloads import ExportPayload, ImportPayload, PreparePayload, PrepareResult
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.evaluate import evaluate
from fedcybgd.coordinator.engine.export import export
from fedcybgd.coordinator.engine.fidelity import fidelity
from fedcybgd.coordinator.engine.import_model import import_model
from fedcybgd.coordinator.engine.influence import influence
from fedcybgd.coordinator.engine.model_directory import ModelRefused
from fedcybgd.coordinator.engine.prepare import prepare
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.manifests import ShardRef
from tests.support.models import tiny_vit
from tests.support.pictures import beside, parquet, rows

ROWS = 12


class Prepared:
    """A run's model made of a tiny ViT, with held-out images, in a store."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        self.folder = folder
        self.store = LocalBlobStore(folder / "blobs")
        self.model = tiny_vit(folder / "model")
        self.task: dict[str, Any] = {"task": "image-classification", "num_labels": 2, "label_names": ["top", "bottom"], "max_length": 128}
        digest, _ = write_blob(self.store, parquet(folder / "held.parquet", rows(ROWS)).read_bytes())
        self.held_out = HeldOutRef(digest=digest, name="held.parquet", columns={})

    def prepared(self, **more: Any) -> PrepareResult:
        added = import_model(self.store, ImportPayload(source=str(self.model)))
        values = {"patterns": ["layers"], "always": ["head"], "layers_per_block": 1, "seed": 0, "held_out": self.held_out, **self.task}
        return prepare(self.store, PreparePayload(config=added.config, files=added.files, blocks=added.blocks, **values | more))


@pytest.fixture
def place(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path)


def refs(run: PrepareResult) -> list[ShardRef]:
    return [ShardRef(block=b.name, version=0, digest=b.digest, size=b.size, codec="exact") for b in run.blocks]


@torch.no_grad()
def test_an_export_is_loaded_by_transformers_and_predicts_the_same(place: Prepared) -> None:
    run = place.prepared()
    assert run.held_out_rows == ROWS
    assert [b.name for b in run.blocks] == ["embeddings", "layers.0", "layers.1", "norm", "head"]
    score = evaluate(place.store, EvaluatePayload(after_rounds=0, files=run.files, blocks=refs(run), held_out=place.held_out, **place.task))
    out = place.folder / "out"
    out.mkdir()
    made = export(place.store, ExportPayload(after_rounds=0, task="image-classification", files=run.files, blocks=refs(run)))
    for file in made.files:
        (out / file.name).write_bytes(place.store.path(file.digest).read_bytes())
    model, info = transformers.AutoModelForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == {0: "top", 1: "bottom"}
    processor = transformers.AutoImageProcessor.from_pretrained(out, backend="pil")
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows(ROWS)]
    labels = torch.tensor([row["label"] for row in rows(ROWS)])
    logits = model.eval()(**processor(pictures, return_tensors="pt")).logits
    assert score.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-6)
    assert score.accuracy == float((logits.argmax(-1) == labels).float().mean())
    assert (score.rows, score.majority, score.bits_per_byte) == (ROWS, 0.5, None)


def test_influence_is_over_all_patches(place: Prepared) -> None:
    run = place.prepared()
    found = influence(place.store, InfluencePayload(files=run.files, blocks=refs(run), held_out=place.held_out, rows=5, **place.task))
    assert (found.rows, found.tokens) == (5, 5 * 5)
    assert set(found.influence) == {"layers.0", "layers.1"}


def test_emulators_are_measured_on_images(place: Prepared) -> None:
    run = place.prepared()
    shards = {ref.block: ref for ref in refs(run)}
    config = next(file for file in run.files if file.name == "config.json")
    made = ShardEncoder(place.store, config, "image-classification").encode(shards["layers.1"].digest, "int4")
    emulator = [ref if ref.block != "layers.1" else ref.model_copy(update={"codec": "int4", "digest": made.digest}) for ref in refs(run)]
    found = fidelity(place.store, FidelityPayload(
        files=run.files, blocks=refs(run), held_out=place.held_out, rows=8, plan="p", block="layers.0", emulator=emulator, batch_size=4, **place.task
    ))  # fmt: skip
    assert found.rows == 8
    assert 0.9 < found.cosine <= 1


def test_held_out_images_are_in_the_file_itself(place: Prepared) -> None:
    digest, _ = write_blob(place.store, beside(place.folder, rows(2)).read_bytes())
    with pytest.raises(DataError, match=r"rows.jsonl row 1: .*held-out rows need the bytes in a Parquet file"):
        place.prepared(held_out=HeldOutRef(digest=digest, name="rows.jsonl", columns={}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.unlink(), "has no preprocessor_config.json"),
        (lambda file: file.write_text('{"size": 9}'), "makes 9 × 9 pixels"),
        (lambda file: file.write_text("[]"), "is no JSON object"),
        (lambda file: file.write_text('{"image_processor_type": "X"}'), "none of the image processors that are known"),
    ],
)
def test_a_model_without_preprocessing_that_is_known_is_refused(spoil: Any, said: str, place: Prepared) -> None:
    spoil(place.model / "preprocessor_config.json")
    with pytest.raises(ModelRefused) as refused:
        place.prepared()
    assert said in refused.value.message
