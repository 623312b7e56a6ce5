"""The prefix cache: what enters the lowest trained layer is computed once a visit, and the layers below are let go.

Those layers are frozen and run without dropout, so a row's hidden states are the same in every step, in models of which
`prefix_trial` finds it so. Each row is computed in
the batch that it is first used in: steps over that very batch get the same bits as without the cache. In another batch a row may be
padded to another width, where matrix products round differently: last-bit differences (relative 1e-5 in float32).
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedcybgd.agent.training.compute import Compute
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.errors import Stopped
from fedcybgd.agent.training.overrides import forwards
from fedcybgd.shared.contract.sizes import in_units
from fedcybgd.shared.files.configuration import HIDDEN_SIZE
from fedcybgd.shared.host.machine import memory_available
from fedcybgd.shared.models.batches import Batch, plain_forward

log = logging.getLogger("fedagent.training")
LARGEST_IN_MEMORY = 2 << 30
"""Bytes that `auto` keeps in memory at the most; a quarter of the limit or of what is free, if that is less."""


class _Reached(Exception):
    """The forward pass came to the end of the prefix."""


class NotExact(Exception):
    """The layers below cannot be stood in for; says why."""


class RowStore:
    """Hidden states by row, (length of the row, hidden): one flat tensor in memory, or one unnamed file on disk."""

    def __init__(self, lengths: dict[int, int], on_disk: bool) -> None:
        self._lengths = lengths
        self._begins: dict[int, int] = {}
        begin = 0
        for row, length in lengths.items():
            self._begins[row] = begin
            begin += length
        self._tokens = begin
        self._file = tempfile.TemporaryFile(prefix="fedagent-prefix-") if on_disk else None  # noqa: SIM115 - lives as long as the store
        self._flat: Tensor | None = None
        self._like: tuple[int, torch.dtype] | None = None

    def put(self, row: int, hidden: Tensor) -> None:
        """Keep `hidden` (tokens, hidden), the states of the tokens of data row `row` without its padding."""
        length, begin = self._lengths[row], self._begins[row]
        kept = hidden.detach().to("cpu")
        if self._like is None:
            self._like = (kept.shape[1], kept.dtype)
            if self._file is None:
                self._flat = torch.empty(self._tokens, kept.shape[1], dtype=kept.dtype)
        if self._flat is not None:
            self._flat[begin : begin + length] = kept
        else:
            assert self._file is not None
            data = kept.contiguous().view(torch.uint8).numpy().tobytes()
            _write(self._file.fileno(), data, begin * kept.shape[1] * kept.element_size())

    def batch(self, rows: Sequence[int], mask: Tensor) -> Tensor:
        """(rows, tokens, hidden) on the device of `mask` (rows, tokens), zero where that is zero."""
        assert self._like is not None
        size, dtype = self._like
        result = torch.zeros(*mask.shape, size, dtype=dtype)
        for row, place, target in zip(rows, mask.cpu().bool(), result, strict=True):
            target[place] = self._get(row, size, dtype)
        return result.to(mask.device)

    def _get(self, row: int, size: int, dtype: torch.dtype) -> Tensor:
        length, begin = self._lengths[row], self._begins[row]
        if self._flat is not None:
            return self._flat[begin : begin + length]
        assert self._file is not None
        kept = torch.empty(length, size, dtype=dtype)
        os.preadv(self._file.fileno(), [kept.view(torch.uint8).numpy().data.cast("B")], begin * size * dtype.itemsize)
        return kept

    def close(self) -> None:
        self._flat = None
        if self._file is not None:
            self._file.close()


def _write(file: int, data: bytes, at: int) -> None:
    """All of it: a disk that is nearly full takes a part first, and says that it is full only when it is asked again."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


class Prefix(NamedTuple):
    """The layers below layer `below` of a model."""

    model: nn.Module
    layers: Sequence[nn.Module]
    """all of them"""
    below: int


class PrefixCache:
    """Stands in for a prefix during one visit. The last of its layers runs `runs` times in a forward pass."""

    def __init__(self, prefix: Prefix, runs: int, order: Sequence[Sequence[int]], on_disk: bool) -> None:
        self._model = prefix.model
        self._layers = list(prefix.layers[: prefix.below])
        self._runs = runs
        self._order = order
        self._on_disk = on_disk
        self._store: RowStore | None = None
        self._tuple: int | None = None
        self._now: Tensor | None = None
        self._left = 0

    def fill(self, partition: Partition, compute: Compute, should_stop: Callable[[], bool]) -> None:
        """Compute the hidden states of all rows of the visit, each in the first batch that it is in.

        Raises `Stopped` when `should_stop` says so, and `NotExact` when a layer does not return hidden states by row.
        """
        rows = dict.fromkeys(row for batch in self._order for row in batch)
        self._store = RowStore({row: partition.features.length(row) for row in rows}, self._on_disk)
        missing = set(rows)
        try:
            for indices in self._order:
                if missing.isdisjoint(indices):
                    continue
                if should_stop():
                    raise Stopped
                batch = partition.batch(indices).to(compute.device)
                with torch.no_grad(), compute.autocast():
                    hidden = self.hidden(self._run(lambda batch=batch: plain_forward(self._model, batch)), batch)  # type: ignore[misc]
                for place, row in enumerate(indices):
                    if row in missing:
                        self._store.put(row, hidden[place][batch.mask[place].bool()])
                        missing.discard(row)
        except BaseException:
            self._store.close()
            raise

    def _run(self, forward: Callable[[], Any]) -> Any:
        """Run the model up to the last end of the last layer of the prefix, and return that layer's output."""
        outputs: list[Any] = []

        def reached(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output)
            if len(outputs) == self._runs:
                raise _Reached

        handle = self._layers[-1].register_forward_hook(reached)
        try:
            forward()
        except _Reached:
            pass
        finally:
            handle.remove()
        return outputs[-1]

    def hidden(self, output: Any, batch: Batch) -> Tensor:
        """The hidden states in what a layer returned for `batch`, (rows, tokens, hidden). Raises `NotExact` when they are laid out otherwise."""
        self._tuple = len(output) if isinstance(output, tuple) else None
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[:2] != batch.mask.shape:
            raise NotExact("layers do not lay out hidden states as rows and tokens")
        return hidden

    def use(self, rows: Sequence[int], mask: Tensor) -> None:
        """Say which rows the next forward pass is of; `mask` (rows, tokens) is 1 where they have tokens."""
        self.hand_on(self.states(rows, mask))

    def states(self, rows: Sequence[int], mask: Tensor) -> Tensor:
        """What is kept of these rows, (rows, tokens, hidden)."""
        assert self._store is not None
        return self._store.batch(rows, mask)

    def hand_on(self, states: Tensor) -> None:
        """Say what the next forward pass is to find instead of the layers below."""
        self._now, self._left = states, self._runs

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        """Within it the layers of the prefix compute nothing, and the last of them hands on what is cached."""
        *others, last = self._layers
        try:
            with forwards([*((layer, self._through) for layer in others), (last, self._cached)]):
                yield
        finally:
            self._now = None
            if self._store is not None:
                self._store.close()

    def _through(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return self._shaped(hidden)

    def _cached(self, *_args: Any, **_kwargs: Any) -> Any:
        hidden = self._now
        assert hidden is not None, "the rows of this forward pass were not said"
        self._left -= 1
        if not self._left:
            self._now = None
        return self._shaped(hidden)

    def _shaped(self, hidden: Tensor) -> Any:
        return hidden if self._tuple is None else (hidden, *[None] * (self._tuple - 1))


def hidden_size(config: Any) -> int:
    """Width of the hidden states."""
    for name in HIDDEN_SIZE:
        if isinstance(value := getattr(config, name, None), int):
            return value
    return 1024


def choose(setting: str, order: Sequence[Sequence[int]], partition: Partition, hidden_size: int, limit: int) -> str | None:
    """Where the prefix goes: memory, disk, or None for nowhere.

    `auto` caches when a row is used more than once in the visit: in memory up to LARGEST_IN_MEMORY, a quarter of `limit` (bytes, 0:
    none) and a quarter of the free memory; else on disk, if twice the room is there. Never on more of the disk than `limits.disk_gb` leaves.
    """
    rows = [row for batch in order for row in batch]
    distinct = set(rows)
    if setting == "off" or (setting == "auto" and len(distinct) == len(rows)):
        return None
    if setting == "memory":
        return setting
    size = 4 * hidden_size * sum(partition.features.length(row) for row in distinct)
    most = min(LARGEST_IN_MEMORY, memory_available() // 4, limit // 4 if limit else LARGEST_IN_MEMORY)
    if setting == "auto" and size <= most:
        return "memory"
    if partition.disk_left is not None and size > partition.disk_left:
        log.warning(
            "no prefix cache: it would take %s of the disk, and limits.disk_gb leaves it %s", in_units(size), in_units(partition.disk_left)
        )
        return None
    return "disk" if setting == "disk" or shutil.disk_usage(Path(tempfile.gettempdir())).free > 2 * size else None
