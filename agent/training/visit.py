"""One visit from request to delta file; keeps emulator and data warm for the next one."""

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from fedcybgd.agent.messages import TrainingOptions, TrainRequest
from fedcybgd.agent.training import prefix, prefix_trial
from fedcybgd.agent.training.checkpoints import checkpointed, to_checkpoint
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.delta import write_delta
from fedcybgd.agent.training.emulator import Emulator, layers_of
from fedcybgd.agent.training.errors import DeviceMissing
from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.memory import PeakMemory, give_back_memory, resident
from fedcybgd.agent.training.optimizer import Group
from fedcybgd.agent.training.shards import materialise
from fedcybgd.agent.training.train import train, visit_order
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.words import Precision
from fedcybgd.shared.models.batches import Batch, plain_forward

log = logging.getLogger("fedagent.training")
SHORT = 256
"""Tokens up to which the attention matrix costs little memory."""


class Visitor:
    """Lives as long as the training process; a second visit of the same run finds its model and data in memory.

    `memory_limit` is what training may take, in bytes; 0 for no limit. With `whole_tables` all rows of the embeddings are trained, for
    comparisons.
    """

    def __init__(self, device: str, options: TrainingOptions | None = None, memory_limit: int = 0, whole_tables: bool = False) -> None:
        self._device = device
        self._options = options or TrainingOptions()
        self._limit = memory_limit
        self._whole_tables = whole_tables
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
        for shard in request.shards:
            materialise(shard)
        settings = request.train
        precision = choose_precision(settings.precision, self._device)
        partition = self._data(request)
        emulator = self._model(request, precision)
        shards = {s.block: Path(s.path) for s in request.shards}
        opened = list(settings.trained)
        emulator.update(request.shards, opened, request.dropped)
        try:
            began = time.monotonic()
            order = visit_order(partition, settings)
            with self._savings(emulator, partition, request, order, opened, precision, should_stop) as (loss_of, cache):
                tokens = None if self._whole_tables else partition.tokens(order)
                trained = {block: emulator.open(shards[block], tokens) for block in opened}
                if emulator.rows and not _runs(emulator, partition.batch(order[0][:1]).to(self._device), precision):
                    emulator.close()
                    trained = {block: emulator.open(shards[block]) for block in opened}
                rows = dict(emulator.rows)
                groups = [Group([p for b in group.blocks for p in trained[b].values()], group.learning_rate) for group in settings.groups]
                metrics = train(
                    emulator.model, groups, partition, settings, precision, self._device, memory, report, should_stop, cache, loss_of, began
                )
            emulator.close()
            error = write_delta(
                trained,
                {block: shards[block] for block in opened},
                Path(request.delta_path),
                request.delta_codec,
                {block: Path(path) for block, path in request.residuals.items()},
                Path(request.new_residuals) if request.new_residuals else None,
                rows,
            )
            return metrics.model_copy(update={"delta_error": error, "peak_memory_bytes": memory.peak()})
        finally:
            trained, groups = {}, []
            emulator.close()
            give_back_memory()

    @contextlib.contextmanager
    def _savings(
        self,
        emulator: Emulator,
        partition: Partition,
        request: TrainRequest,
        order: list[list[int]],
        opened: Sequence[str],
        precision: torch.dtype,
        should_stop: Callable[[], bool],
    ) -> Iterator[tuple[Loss, prefix.Prefix | None]]:
        """What saves memory in this visit, as the options say: chunked logits, a prefix cache, checkpointed layers."""
        settings, layers, config = request.train, emulator.layers, emulator.model.config
        # The lowest layer that gradients reach; all of them when the embeddings are trained, none when only what comes after them is.
        lowest = 0 if "embeddings" in opened else min((layer for b in opened for layer in layers_of(b)), default=len(layers))
        loss_of = Loss(emulator.model, settings.task, precision, self._options.chunked_logits, partition.batch(order[0]).to(self._device))
        cache = self._prefix(emulator, partition, request, order, lowest, opened, loss_of, precision, should_stop)
        width = max(max(partition.features.length(i) for i in indices) for indices in order)
        tokens = settings.batch_size * width
        chosen = to_checkpoint(layers, lowest, self._options.checkpointing, tokens, width, config, self._limit)
        with checkpointed(chosen), cache.instead() if cache is not None else contextlib.nullcontext():
            yield loss_of, cache

    def _prefix(
        self,
        emulator: Emulator,
        partition: Partition,
        request: TrainRequest,
        order: list[list[int]],
        below: int,
        opened: Sequence[str],
        loss_of: Loss,
        precision: torch.dtype,
        should_stop: Callable[[], bool],
    ) -> prefix.Prefix | None:
        """The cache of what enters layer `below`, filled, with the layers under it let go; None where there is none to be had."""
        if below == 0:
            return None
        where = prefix.choose(self._options.prefix_cache, order, partition, prefix.hidden_size(emulator.model.config), self._limit)
        if where is None:
            return None
        key = (tuple(opened), below, tuple(request.dropped))
        try:
            if key not in emulator.runs_of_prefix:
                trained = [p for shard in request.shards if shard.block in opened for p in emulator.parameters(Path(shard.path))]
                rows = sorted({row for batch in order for row in batch})
                emulator.runs_of_prefix[key] = prefix_trial.runs_of_prefix(
                    emulator.model, emulator.layers, below, partition, rows, trained, loss_of, self._device, precision
                )
            runs = emulator.runs_of_prefix[key]
            if not runs:
                return None
            cache = prefix.Prefix(emulator.model, emulator.layers, below, runs, order, where == "disk")
            cache.fill(partition, self._device, precision, should_stop)
        except prefix.NotExact as error:
            emulator.runs_of_prefix[key] = 0
            log.warning("no prefix cache for visits of %s in this model: %s", ", ".join(opened), error)
            return None
        emulator.release(below)
        return cache

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


def _runs(emulator: Emulator, batch: Batch, precision: torch.dtype) -> bool:
    """Whether the model does with some rows of its table: it does not if it uses the table for more than to look tokens up."""
    device = batch.input_ids.device.type
    try:
        with torch.no_grad(), torch.autocast(device, dtype=precision, enabled=precision != torch.float32):
            plain_forward(emulator.model, batch)
    except (RuntimeError, NotImplementedError):
        return False
    return True


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
    """The torch device for `auto`, `cpu`, `cuda` or `mps`. Raises `DeviceMissing` for one that torch cannot use here."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, there in usable.items() if there)
    if not usable[wanted]:
        raise DeviceMissing(
            f"torch {torch.__version__} finds no {wanted} here: set device.kind to auto, or install the driver and a torch for it"
        )
    return wanted


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
