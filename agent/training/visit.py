"""One visit from request to delta file; keeps emulator and data warm for the next one."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from agent.messages import TrainRequest
from agent.training.data import Partition
from agent.training.delta import write_delta
from agent.training.emulator import Emulator
from agent.training.memory import PeakMemory, give_back_memory, resident
from agent.training.train import Group, train
from shared.errors import DataError
from shared.protocol import Precision, Progress, TrainMetrics

SHORT = 256
"""Tokens up to which the attention matrix costs little memory."""


class Visitor:
    """Lives as long as the training process; a second visit of the same run finds its model and data in memory."""

    def __init__(self, device: str) -> None:
        self._device = device
        _warm_up(device)
        self._baseline = resident()
        self._emulator: tuple[object, Emulator] | None = None
        self._partition: tuple[object, Partition] | None = None

    def visit(self, request: TrainRequest, report: Callable[[Progress], None], should_stop: Callable[[], bool]) -> TrainMetrics:
        """Train what `request` asks for and leave the delta at `request.delta_path`.

        Raises `DataError`, `NonFinite`, `Stopped`, or what torch raises when memory runs out; no delta file is there then.
        """
        memory = PeakMemory(self._device, self._baseline)
        report(Progress(phase="loading"))
        settings = request.train
        precision = choose_precision(settings.precision, self._device)
        partition = self._data(request)
        emulator = self._model(request, precision)
        shards = {s.block: s for s in request.shards}
        opened = [block for group in settings.groups for block in group.blocks]
        emulator.update(request.shards, opened)
        try:
            trained = {block: emulator.open(Path(shards[block].path)) for block in opened}
            groups = [Group([p for b in group.blocks for p in trained[b].values()], group.learning_rate) for group in settings.groups]
            metrics = train(emulator.model, groups, partition, settings, precision, self._device, memory, report, should_stop)
            write_delta(trained, {block: Path(shards[block].path) for block in opened}, Path(request.delta_path))
            return metrics
        finally:
            trained, groups = {}, []
            emulator.close()
            give_back_memory()

    def _model(self, request: TrainRequest, precision: torch.dtype) -> Emulator:
        key = (request.model_key, request.train.task, precision)
        if self._emulator is None or self._emulator[0] != key:
            self._emulator = None  # let go of the old one before the new one is made
            # On a CPU the plain attention has a backward pass twice as fast as the fused one, as long as windows are short.
            attention = "eager" if self._device == "cpu" and request.train.max_length <= SHORT else None
            config = Path(request.files["config.json"])
            self._emulator = (key, Emulator(config, request.train.task, self._device, precision, attention))
        return self._emulator[1]

    def _data(self, request: TrainRequest) -> Partition:
        settings = request.train
        path = Path(request.data.path)
        changed = path.stat().st_mtime_ns if path.exists() else 0
        key = (request.model_key, request.data.model_dump_json(), changed, settings.task, settings.max_length, settings.num_labels)
        if self._partition is None or self._partition[0] != key:
            with tempfile.TemporaryDirectory(prefix="fedagent-") as folder:
                for name, local in request.files.items():
                    shutil.copyfile(local, Path(folder) / name)
                self._partition = (key, Partition(request.data, Path(folder), settings))
        if not self._partition[1].features:
            raise DataError("there are no rows to train on")
        return self._partition[1]


def _warm_up(device: str) -> None:
    """Import what the first step would import (classes of models and tokenizers, the optimizer's machinery): seconds on a slow disk."""
    import transformers

    for name in (
        "AutoTokenizer",
        "AutoModelForSequenceClassification",
        "AutoModelForCausalLM",
        "BertForSequenceClassification",
        "LlamaForCausalLM",
    ):
        getattr(transformers, name)
    weight = torch.nn.Parameter(torch.zeros(8, 8, device=device))
    optimizer = torch.optim.AdamW([weight], fused=device in ("cpu", "cuda"))
    torch.nn.functional.linear(torch.ones(8, 8, device=device), weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    optimizer.step()


def choose_device(wanted: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda` or `mps`."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_precision(wanted: Precision, device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it natively (about five times faster on such CPUs), else float32."""
    if wanted == "auto":
        if device == "cuda":
            native = torch.cuda.is_bf16_supported()
        elif device == "cpu":
            features = torch.cpu.get_capabilities()
            native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
        else:
            native = False
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32
