"""The prefix cache: what enters the lowest trained layer is computed once a visit, and the layers below are let go.

Those layers are frozen and run without dropout, so a row's hidden states are the same in every step. Each row is computed in
the batch that it is first used in: steps over that very batch get the same bits as without the cache. In another batch a row may be
padded to another width, where matrix products round differently: last-bit differences (relative 1e-5 in float32).
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from agent.training.data import Partition
from agent.training.errors import Stopped
from agent.training.overrides import forwards
from shared.batches import plain_forward

LARGEST_IN_MEMORY = 2 << 30
"""Bytes that `auto` keeps in memory at the most; a quarter of the limit or of what is free, if that is less."""


class _Reached(Exception):
    """The forward pass came to the end of the prefix."""


class _NotPossible(Exception):
    """The layers hand on more than hidden states."""


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
        """Keep the first `length` rows of `hidden` (tokens, hidden) for data row `row`."""
        length, begin = self._lengths[row], self._begins[row]
        kept = hidden[:length].detach().to("cpu")
        if self._like is None:
            self._like = (kept.shape[1], kept.dtype)
            if self._file is None:
                self._flat = torch.empty(self._tokens, kept.shape[1], dtype=kept.dtype)
        if self._flat is not None:
            self._flat[begin : begin + length] = kept
        else:
            assert self._file is not None
            data = kept.contiguous().view(torch.uint8).numpy().tobytes()
            os.pwrite(self._file.fileno(), data, begin * kept.shape[1] * kept.element_size())

    def batch(self, rows: Sequence[int], width: int, device: str) -> Tensor:
        """(rows, width, hidden), zero where a row is padded."""
        assert self._like is not None
        size, dtype = self._like
        result = torch.zeros(len(rows), width, size, dtype=dtype)
        for place, row in enumerate(rows):
            length, begin = self._lengths[row], self._begins[row]
            if self._flat is not None:
                result[place, :length] = self._flat[begin : begin + length]
            else:
                assert self._file is not None
                target = result[place, :length].view(torch.uint8).numpy().data.cast("B")
                os.preadv(self._file.fileno(), [target], begin * size * dtype.itemsize)
        return result.to(device)

    def close(self) -> None:
        self._flat = None
        if self._file is not None:
            self._file.close()


class Prefix:
    """Stands in for the layers below layer `below` during one visit."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], below: int, order: Sequence[Sequence[int]], on_disk: bool) -> None:
        self._model = model
        self._layers = list(layers[:below])
        self._order = order
        self._on_disk = on_disk
        self._store: RowStore | None = None
        self._tuple: int | None = None
        self._now: Tensor | None = None

    def fill(self, partition: Partition, device: str, precision: torch.dtype, should_stop: Callable[[], bool]) -> bool:
        """Compute the hidden states of all rows of the visit, each in the first batch that it is in.

        Raises `Stopped` when `should_stop` says so. False when this model's layers hand on more than hidden states: then nothing is cached.
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
                batch = partition.batch(indices).to(device)
                with torch.no_grad(), torch.autocast(device, dtype=precision, enabled=precision != torch.float32):
                    hidden = self._run(lambda batch=batch: plain_forward(self._model, batch))  # type: ignore[misc]
                for place, row in enumerate(indices):
                    if row in missing:
                        self._store.put(row, hidden[place])
                        missing.discard(row)
        except _NotPossible:
            self._store.close()
            return False
        except BaseException:
            self._store.close()
            raise
        return True

    def _run(self, forward: Callable[[], Any]) -> Tensor:
        """Run the model up to the end of the last layer of the prefix, and return that layer's output."""
        outputs: list[Any] = []

        def reached(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output)
            raise _Reached

        handle = self._layers[-1].register_forward_hook(reached)
        try:
            forward()
        except _Reached:
            pass
        finally:
            handle.remove()
        [output] = outputs
        self._tuple = len(output) if isinstance(output, tuple) else None
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or (isinstance(output, tuple) and any(o is not None for o in output[1:])):
            raise _NotPossible
        return hidden

    def use(self, rows: Sequence[int], width: int, device: str) -> None:
        """Say which rows the next forward pass is of."""
        assert self._store is not None
        self._now = self._store.batch(rows, width, device)

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
        hidden, self._now = self._now, None
        assert hidden is not None, "the rows of this forward pass were not said"
        return self._shaped(hidden)

    def _shaped(self, hidden: Tensor) -> Any:
        return hidden if self._tuple is None else (hidden, *[None] * (self._tuple - 1))


def hidden_size(config: Any) -> int:
    """Width of the hidden states, by the names that configurations have for it."""
    for name in ("hidden_size", "n_embd", "d_model", "dim"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    return 1024


def choose(setting: str, order: Sequence[Sequence[int]], partition: Partition, hidden_size: int, limit: int) -> str | None:
    """Where the prefix goes: memory, disk, or None for nowhere.

    `auto` caches when a row is used more than once in the visit: in memory up to LARGEST_IN_MEMORY, a quarter of `limit` (bytes, 0:
    none) and a quarter of the free memory; else on disk, if twice the room is there.
    """
    if setting == "off":
        return None
    if setting in ("memory", "disk"):
        return setting
    rows = [row for batch in order for row in batch]
    distinct = set(rows)
    if len(distinct) == len(rows):
        return None
    size = 4 * hidden_size * sum(partition.features.length(row) for row in distinct)
    most = min(LARGEST_IN_MEMORY, psutil.virtual_memory().available // 4, limit // 4 if limit else LARGEST_IN_MEMORY)
    if size <= most:
        return "memory"
    return "disk" if shutil.disk_usage(Path(tempfile.gettempdir())).free > 2 * size else None
