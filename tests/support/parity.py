"""Models saved in every odd shape, what transformers makes of each, and what the product makes of it.

The judge is `from_pretrained`: the product adds the same directory, prepares a run, applies a delta and exports, and has to arrive at the
same numbers in float32, or has to refuse the directory.
"""

import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, Change, ExportPayload, ImportPayload, PreparePayload, Term
from fedcybgd.coordinator.domain.model_blocks import StoredBlock
from fedcybgd.coordinator.engine.apply import apply
from fedcybgd.coordinator.engine.export import export
from fedcybgd.coordinator.engine.import_model import import_model
from fedcybgd.coordinator.engine.prepare import prepare
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.words import CLASSIFICATIONS, Task
from fedcybgd.shared.models.model_classes import AUTO_CLASSES
from tests.support import families
from tests.support.families import logits_of, randomised
from tests.support.shapes import LABELS, LAYERS, SHAPES, Saved, State

FAMILIES = families.SUPPORTED
IMAGE_TYPES = {make(2).config.model_type for _, make in families.IMAGES.values()}


@functools.cache
def original(family: str) -> tuple[Any, State, dict[str, Any]]:
    """A model with random weights, and what `save_pretrained` writes of it."""
    model = randomised(FAMILIES[family][1](LAYERS))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, load_file(Path(folder) / "model.safetensors"), json.loads((Path(folder) / "config.json").read_text())


def saved_as(family: str, shape_name: str) -> Saved | None:
    model, tensors, config = original(family)
    return SHAPES[shape_name](Saved(model, dict(tensors), dict(config)))


def write(saved: Saved, folder: Path) -> None:
    folder.mkdir(parents=True)
    for file, tensors in (saved.files or {"model.safetensors": saved.tensors}).items():
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / file, {"format": "pt"})
    if saved.index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": saved.index}))
    (folder / "config.json").write_text(json.dumps(saved.config))
    if saved.config["model_type"] in IMAGE_TYPES:
        made = {"image_processor_type": "ViTImageProcessor", "size": saved.config["image_size"]}
        (folder / "preprocessor_config.json").write_text(json.dumps(made))
        return
    for path in _tokenizer().iterdir():
        shutil.copy(path, folder)


@functools.cache
def _tokenizer() -> Path:
    from tests.support.models import word_piece

    folder = Path(tempfile.mkdtemp(prefix="parity-tokenizer-"))
    word_piece(folder, 50)
    return folder


@dataclass
class Verdict:
    family: str
    shape: str
    outcome: str
    """equal, refused, different, or fresh: equal but for a head that is made afresh on both sides"""
    reason: str = ""


@torch.no_grad()
def judge(family: str, shape_name: str, folder: Path, trained: bool = True) -> Verdict | None:
    """Compare; `trained`: after a delta to the first layer and an export too. None where the shape means nothing for the family."""
    saved = saved_as(family, shape_name)
    if saved is None:
        return None
    write(saved, folder / "model")
    task = FAMILIES[family][0]
    store = LocalBlobStore(folder / "blobs")
    try:
        product = Product(store, folder, task)
    except FedError as error:
        return Verdict(family, shape_name, "refused", f"{error.code}: {error.message}")
    try:
        oracle, info = reference(folder / "model", task)
    except Exception as error:
        return Verdict(family, shape_name, "different", f"transformers refuses: {type(error).__name__}: {error}")
    fresh = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if wrong := differences(oracle, product.exported(), task, fresh):
        return Verdict(family, shape_name, "different", wrong)
    if trained:
        product.train("layers.0", 0.01)
        for name, parameter in oracle.named_parameters():
            if product.is_trained(name):
                parameter += 0.01
        if wrong := differences(oracle, product.exported(), task, fresh):
            return Verdict(family, shape_name, "different", f"after training: {wrong}")
    return Verdict(family, shape_name, "fresh" if fresh else "equal", ", ".join(sorted(fresh)[:3]))


def reference(folder: Path, task: Task) -> tuple[Any, dict[str, Any]]:
    more = {"num_labels": LABELS, "ignore_mismatched_sizes": True} if task in CLASSIFICATIONS else {}
    model, info = AUTO_CLASSES[task].from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager", **more
    )
    return model.eval(), info


def differences(oracle: Any, exported: Path, task: str, fresh: set[str]) -> str:
    """Where the exported model is another than `oracle`, in words; nothing where it is the same."""
    ours, info = reference(exported, task)
    if left := [kind for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]]:
        return f"the export is not complete: {left[0]} {sorted(map(str, info[left[0]]))[:3]}"
    state = ours.state_dict()
    for name, tensor in oracle.state_dict().items():
        if name not in fresh and not torch.allclose(state[name], tensor, atol=1e-6):
            return f"{name} differs by {float((state[name] - tensor).abs().max())}"
    if not fresh:
        oracle.config.return_dict = True
        gap = float((logits_of(oracle) - logits_of(ours)).abs().max())
        if not gap < 1e-5:
            return f"logits differ by {gap}"
    return ""


class Product:
    """The product's own steps around one directory, in this process."""

    def __init__(self, store: LocalBlobStore, folder: Path, task: Any) -> None:
        self.store, self.folder, self.task = store, folder, task
        added = import_model(store, ImportPayload(source=str(folder / "model")))
        always = ["head"] if task in CLASSIFICATIONS else []
        run = prepare(
            store,
            PreparePayload(
                config=added.config, files=added.files, blocks=added.blocks, task=task,
                num_labels=LABELS if task in CLASSIFICATIONS else None, label_names=None, max_length=16, patterns=["layers"],
                always=always, layers_per_block=1, seed=0, held_out=None,
            ),
        )  # fmt: skip
        self.files = run.files
        self.blocks: list[StoredBlock] = run.blocks
        self.refs = {b.name: ShardRef(block=b.name, version=0, digest=b.digest, size=b.size, codec="exact") for b in run.blocks}
        self._trained: set[str] = set()
        self._exports = 0

    def train(self, block: str, value: float) -> None:
        """Apply a delta that is `value` everywhere."""
        stored = next(b for b in self.blocks if b.name == block)
        delta = {t.name: torch.full(tuple(t.shape), value) for t in stored.tensors}
        digest, _ = write_blob(self.store, save(delta, {"codec": "float32"}))
        change = Change(block=self.refs[block], terms=[Term(digest=digest, weight=1.0)])
        self.refs[block] = apply(self.store, ApplyPayload(round=0, changes=[change])).blocks[0]
        self._trained |= delta.keys()

    def is_trained(self, name: str) -> bool:
        return any(name == trained or name.endswith("." + trained) for trained in self._trained)

    def exported(self) -> Path:
        result = export(self.store, ExportPayload(after_rounds=0, task=self.task, files=self.files, blocks=list(self.refs.values())))
        self._exports += 1
        target = self.folder / f"export-{self._exports}"
        target.mkdir()
        for file in result.files:
            shutil.copyfile(self.store.path(file.digest), target / file.name)
        return target
