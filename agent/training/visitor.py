"""Makes visits, and keeps emulator and data warm for the next one."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from fedcybgd.agent.messages import TrainingOptions, TrainRequest
from fedcybgd.agent.training.bounds import check_rows, check_tensors, check_used
from fedcybgd.agent.training.class_means import OthersLabels, begin_at, class_means
from fedcybgd.agent.training.compute import NO_ORDER, Compute, choose_precision, repeat_exactly, warm_up
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.delta import DeltaTransform, unchanged
from fedcybgd.agent.training.emulator import Emulator, homes
from fedcybgd.agent.training.graphs import graphs_of
from fedcybgd.agent.training.memory import PeakMemory, give_back_memory, resident
from fedcybgd.agent.training.optimizer import OptimizerGroup
from fedcybgd.agent.training.order import num_steps
from fedcybgd.agent.training.savings import savings
from fedcybgd.agent.training.shards import materialise
from fedcybgd.agent.training.train import train
from fedcybgd.agent.training.visit import Opened, Visit
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.files.configuration import plain, read_configuration
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.models.layers import AssemblyError
from fedcybgd.shared.tensors.codecs import names_in

log = logging.getLogger("fedagent.training")
CORRECTED = "a correction"
"""What a matrix is trained as that is corrected, for the owner of rows."""
SHORT = 256
"""Tokens up to which the attention matrix costs little memory."""


class Visitor:
    """Lives as long as the training process; a second visit of the same run finds its model and data in memory.

    `memory_limit` is what training may take, in bytes; 0 for no limit. With `whole_tables` all rows of the embeddings are trained, for
    comparisons. `transform` is what every delta passes through before it is encoded.
    """

    def __init__(
        self,
        device: str,
        options: TrainingOptions | None = None,
        memory_limit: int = 0,
        whole_tables: bool = False,
        transform: DeltaTransform = unchanged,
    ) -> None:
        self.device = device
        self._options = options or TrainingOptions()
        self._limit = memory_limit
        self._whole_tables = whole_tables
        self._transform = transform
        repeat_exactly(device)
        warm_up(device)
        self._baseline = resident()
        self._emulator: tuple[object, Emulator] | None = None
        self._partition: tuple[object, Partition] | None = None

    def visit(self, request: TrainRequest, report: Callable[[Progress], None], should_stop: Callable[[], bool]) -> TrainMetrics:
        """Train what `request` asks for and leave the delta at `request.delta_path`.

        Raises `DataError`, `NonFinite`, `Stopped`, or what torch raises when memory runs out; no delta file is there then.
        """
        try:
            return self._visit(request, report, should_stop)
        except RuntimeError as error:
            if NO_ORDER not in str(error):
                raise
            log.warning("the same visit may differ in its last bits from now on: %s", str(error).partition(".")[0])
        repeat_exactly(self.device, wherever_possible=True)
        return self._visit(request, report, should_stop)

    def _visit(self, request: TrainRequest, report: Callable[[Progress], None], should_stop: Callable[[], bool]) -> TrainMetrics:
        memory = PeakMemory(self.device, self._baseline)
        report(Progress(phase="loading"))
        for shard in request.shards:
            materialise(shard)
        _check_whole(request)
        # Before anything of transformers reads it: sizes that no model has take its memory and time already with the tokenizer.
        family = plain(read_configuration(Path(request.files["config.json"]))).get("model_type")
        compute = Compute(self.device, choose_precision(request.train.precision, self.device, family))
        partition = self._data(request)
        emulator = self._model(request, compute, partition.width)
        emulator.update(request.shards, request.train.trained, request.dropped)
        visit = Visit(request, emulator, partition, compute, memory, report, should_stop)
        self._check(visit)
        opened: Opened = {}
        factors: dict[str, nn.Parameter] = {}
        groups: list[OptimizerGroup] = []
        others: OthersLabels | None = None
        try:
            means = class_means(visit)
            with savings(visit, self._options, self._limit) as (loss_of, cache):
                opened = visit.open(self._whole_tables)
                begin_at(means, opened)
                others = OthersLabels(visit, opened)
                factors, rows = visit.correct(), dict(emulator.rows)
                groups = [OptimizerGroup([p for b in g.blocks for p in opened[b].values()], g.learning_rate) for g in visit.settings.groups]
                if visit.settings.corrections is not None:
                    groups.append(OptimizerGroup(list(factors.values()), visit.settings.corrections.learning_rate))
                graphs = graphs_of(visit, self._options.graphs, [p for group in groups for p in group.parameters], loss_of, cache)
                metrics = train(visit, groups, loss_of, cache, graphs)
                others.leave()
            emulator.close()
            error = visit.write_delta(opened, factors, rows, self._transform)
            told = {"delta_error": error, "peak_memory_bytes": memory.peak(), "label_counts": visit.told_labels}
            return metrics.model_copy(update=told)
        finally:
            if others is not None:
                others.close()
            opened, factors, groups, others = {}, {}, [], None
            emulator.close()
            give_back_memory()

    def _check(self, visit: Visit) -> None:
        """Raises `PolicyBroken` before anything is trained."""
        bounds, features = visit.request.bounds, visit.partition.features
        if bounds is None:
            return
        check_rows(bounds, num_steps(visit.settings, len(features)), visit.settings.batch_size, len(features))
        check_used(bounds, visit.order)
        if bounds.never:
            trained = {block: names_in(read_header(visit.shard(block))) for block in visit.blocks}
            check_tensors(
                bounds,
                trained | {CORRECTED: visit.settings.corrected},
                homes(Path(visit.request.files["config.json"]), visit.settings.task),
            )

    def _model(self, request: TrainRequest, compute: Compute, width: int) -> Emulator:
        key = (request.model_key, request.train.task, compute.precision)
        if self._emulator is None or self._emulator[0] != key:
            self._emulator = None  # let go of the old one before the new one is made
            # On a CPU the plain attention has a backward pass twice as fast as the fused one, as long as windows are short.
            attention = "eager" if self.device == "cpu" and width <= SHORT else None
            config = Path(request.files["config.json"])
            self._emulator = (key, Emulator(config, request.train.task, self.device, compute.precision, attention))
        return self._emulator[1]

    def _data(self, request: TrainRequest) -> Partition:
        settings = request.train
        path = Path(request.data.path)
        changed = path.stat().st_mtime_ns if path.exists() else 0
        key = (request.model_key, request.data.model_dump_json(), changed, settings.task, settings.max_length, settings.num_labels)
        if self._partition is None or self._partition[0] != key:
            self._partition = None  # what the old one has on the disk is counted no more
            with tempfile.TemporaryDirectory(prefix="fedagent-") as folder:
                for name, local in request.files.items():
                    shutil.copyfile(local, Path(folder) / name)
                self._partition = (key, Partition(request.data, Path(folder), settings, request.disk_bytes))
        if not self._partition[1].features:
            raise DataError("there are no rows to train on")
        return self._partition[1]


def _check_whole(request: TrainRequest) -> None:
    """Raises `AssemblyError` for a visit that nothing can be trained in, whoever made it up."""
    if "config.json" not in request.files:
        raise AssemblyError("no config.json came with the model")
    if not request.train.trained:
        raise AssemblyError("no block is to be trained")
    if missing := set(request.train.trained) - {shard.block for shard in request.shards}:
        raise AssemblyError(f"no shard came of what is to be trained: {', '.join(sorted(missing))}")
