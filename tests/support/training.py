"""Small random models cut into shards of any codec, and visits to them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedcybgd.agent.messages import DataSource, LocalShard, TrainingOptions, TrainRequest
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings
from fedcybgd.shared.files import lossless
from fedcybgd.shared.tensors.codecs import encoded_names
from fedcybgd.shared.tensors.quantized import quantize
from tests.support.decoded import decode
from tests.support.families import QUESTIONS, SUPPORTED, config_of, randomised, tensors_by_block
from tests.support.models import WORDS
from tests.support.pictures import parquet
from tests.support.pictures import rows as pictures
from tests.support.questions import question


def encoded(tensors: Mapping[str, torch.Tensor], codec: str) -> dict[str, torch.Tensor]:
    """As shared.codecs stores them, but small tensors are quantized too."""
    result = {}
    for name, tensor in tensors.items():
        if codec not in ("int8", "int4") or tensor.ndim < 2 or not tensor.is_floating_point():
            result[name] = tensor
            continue
        q = quantize(tensor, 8 if codec == "int8" or tensor.shape[-1] % 2 else 4)
        result |= {n: t for n, t in zip(encoded_names(name), (q.codes, q.scales, q.offsets), strict=True) if t is not None}
    return result


class Home:
    """Shards of one model in every codec, with a tokenizer and rows: what visits need."""

    def __init__(self, folder: Path, tokenizer: Path, family: str, layers: int = 3, **config: Any) -> None:
        self.folder = folder
        self.task, make = (SUPPORTED | QUESTIONS)[family]
        settings = make(layers).config
        sizes = {"vocab_size": 100} if self.task != "image-classification" else {}  # the tokenizer's words must fit in
        for name, value in (sizes | config).items():
            setattr(settings, name, value)
        torch.manual_seed(0)
        self.model = model = randomised(type(make(layers))(settings).eval())
        self.files = {p.name: str(p) for p in tokenizer.iterdir() if p.name.startswith(("tokenizer", "special"))}
        if self.task == "image-classification":
            (folder / "preprocessor_config.json").write_text(
                json.dumps({"size": settings.image_size, "image_processor_type": "ViTImageProcessor"})
            )
            self.files = {"preprocessor_config.json": str(folder / "preprocessor_config.json")}
        (folder / "config.json").write_text(json.dumps(config_of(model)))
        self.files["config.json"] = str(folder / "config.json")
        self.blocks = tensors_by_block(model)
        for codec in ("exact", "int8", "int4"):
            (folder / codec).mkdir()
            for block, tensors in self.blocks.items():
                save_file(encoded(tensors, codec), self.path(block, codec), {"codec": codec})
                if codec != "exact":
                    dense = folder / f"decoded-{codec}"
                    dense.mkdir(exist_ok=True)
                    save_file(decode(self.path(block, codec), codec), dense / f"{block}.safetensors", {"codec": "exact"})
        self.rows = self._rows(folder)

    def _rows(self, folder: Path) -> Path:
        if self.task == "image-classification":
            return parquet(folder / "rows.parquet", [row | {"label": i % 3} for i, row in enumerate(pictures(8))])
        path = folder / "rows.jsonl"
        values = [{"text": " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(4 + i % 5)), "label": i % 3} for i in range(8)]
        if self.task == "causal-lm":
            values = [{"prompt": " ".join(WORDS[i : i + 2]), "completion": " ".join(WORDS[i + 2 : i + 6 + i % 3])} for i in range(8)]
        if self.task == "extractive-qa":
            values = [question(" ".join(WORDS[i : i + 2]), " ".join(WORDS[i + 3 : i + 9 + i % 3]), i % 5, 1 + i % 2) for i in range(8)]
        path.write_text("".join(json.dumps(row) + "\n" for row in values))
        return path

    def path(self, block: str, codec: str) -> Path:
        return self.folder / codec / f"{block}.safetensors"

    def shard(self, block: str, codec: str) -> LocalShard:
        path = self.path(block, codec)
        return LocalShard(
            block=block, digest=digest_of_file(path), codec=codec.split("-")[0].replace("decoded", "exact"), path=str(path),
            size=path.stat().st_size,
        )  # fmt: skip

    def request(
        self, *opened: str, codec: str = "exact", trained: str = "exact", dropped: list[str] | None = None, **settings: Any
    ) -> TrainRequest:
        """Frozen blocks in `codec`: exact, int8, int4, or decoded-int8 and decoded-int4 (exact shards of the same values); others in `trained`."""
        values = {"steps": 3, "batch_size": 4, "max_length": 16, "seed": 7, "precision": "float32", "warmup_steps": 1, "num_labels": 3}
        groups = [ParameterGroup(blocks=[block], learning_rate=1e-2) for block in opened]
        shards = [self.shard(b, trained if b in opened else codec) for b in self.blocks if b not in (dropped or [])]
        return TrainRequest(
            assignment_id="asg", files=self.files, model_key="run", shards=shards, dropped=dropped or [],
            train=TrainSettings(task=self.task, groups=groups, **values | settings), data=DataSource(path=str(self.rows)),  # type: ignore[arg-type]
            delta_path=str(self.folder / "delta.safetensors"),
        )  # fmt: skip


def unset_rows(home: Home, labels: list[int]) -> None:
    """Those rows of a BERT classifier's head are zero: nobody has taught them."""
    tensors = load_file(home.path("head", "exact"))
    tensors["classifier.weight"][labels] = 0.0
    save_file(tensors, home.path("head", "exact"), {"codec": "exact"})


def train(
    request: TrainRequest, visitor: Visitor | None = None, look: Callable[[], object] = lambda: None, **options: Any
) -> dict[str, Any]:
    """Do a visit and return its delta; `options` are those of [training], all off where not given. `look` is called before each step."""
    off = {"checkpointing": "off", "prefix_cache": "off", "chunked_logits": "off", "graphs": "off"}
    visitor = visitor or Visitor("cpu", TrainingOptions.model_validate(off | options))

    def watch() -> bool:
        look()
        return False

    visitor.visit(request, lambda _: None, watch)
    return read_delta(Path(request.delta_path))


def read_delta(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a delta file, which travels packed."""
    plain = path.with_suffix(".plain")
    lossless.unpack(path, plain, 1 << 24)
    return load_file(plain)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """To the bit, and not all zero."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one) and any(t.any() for t in one.values())


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Norm of the difference relative to the norm."""
    difference = sum(float((one[n] - other[n]).double().square().sum()) for n in one)
    return float((difference / sum(float(one[n].double().square().sum()) for n in one)) ** 0.5)


def options(**given: str) -> TrainingOptions:
    """Settings of [training], all off where not given."""
    return TrainingOptions.model_validate({"checkpointing": "off", "prefix_cache": "off", "chunked_logits": "off", "graphs": "off"} | given)


class Calls:
    """Counts the runs of each layer of the stack, forward and recomputed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]) -> None:
        self.of: dict[Any, int] = {}
        """By layer, which stays: the place of one that is gone would be another's"""
        plain = kind.forward

        def counting(layer: Any, *args: Any, **kwargs: Any) -> Any:
            self.of[layer] = self.of.get(layer, 0) + 1
            return plain(layer, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", counting)

    def by_layer(self, visitor: Visitor) -> list[int]:
        assert visitor._emulator is not None
        return [self.of.get(layer, 0) for layer in visitor._emulator[1].layers]
