"""Records work on a CUDA card as graphs, with torch's own classes for it.

What cannot be recorded is found out in a rehearsal, where torch raises whenever the host would wait for the card: a recording that fails leaves
the allocator of torch before 2.13 in the middle of it.
"""

import contextlib
import ctypes
import functools
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor, taken: int, unseen: int) -> None:
        self.graph, self.output, self.taken, self.unseen = graph, output, taken, unseen

    def replay(self) -> None:
        self.graph.replay()


class CudaRecorder:
    """Its recordings work in the same memory, one after another."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def rehearse(self, work: Callable[[], Tensor]) -> Tensor:
        with _aside(), _as_if_recorded():
            return work()

    def record(self, work: Callable[[], Tensor]) -> CudaRecording:
        gc.collect()  # a node of a pass before, in a cycle, would have this one wait for another stream
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
        graph = torch.cuda.CUDAGraph()
        try:
            with _uncollected(), _aside() as stream, torch.cuda.graph(graph, pool=self._pool, stream=stream):
                output = work()
        except BaseException:
            _abandon(graph, self._pool)
            raise
        taken = torch.cuda.memory_reserved() - reserved
        return CudaRecording(graph, output, taken, max(0, taken - (torch.cuda.memory_allocated() - allocated)))

    def close(self, recordings: Sequence[Any]) -> None:
        torch.cuda.synchronize()
        for recording in recordings:
            recording.graph.reset()
            recording.output = None
        # What products on the stream aside had to work in would stay for good.
        if (clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None)) is not None:
            clear()
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()


@functools.cache
def _stream() -> torch.cuda.Stream:
    """One for the life of the process: what products work in is kept by stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _aside() -> Iterator[torch.cuda.Stream]:
    """Within it work is done on a stream of its own, since none can be recorded on the usual one; before and after they wait for each other."""
    usual, stream = torch.cuda.current_stream(), _stream()
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        yield stream
    usual.wait_stream(stream)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Within it Python looks for no garbage: what belongs to a card cannot be let go of while it records."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def _as_if_recorded() -> Iterator[None]:
    """Within it models are told that they are recorded, and torch raises a RuntimeError where the host would wait for the card."""
    plain, mode = torch.cuda.is_current_stream_capturing, torch.cuda.get_sync_debug_mode()
    torch.cuda.is_current_stream_capturing = lambda: True
    _raise_at_waits("error")
    try:
        yield
    finally:
        _raise_at_waits(mode)
        torch.cuda.is_current_stream_capturing = plain


def _raise_at_waits(mode: int | str) -> None:
    with warnings.catch_warnings():  # torch warns that it may not notice all of them
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Have the allocator forget a recording that failed, which torch before 2.13 does not: it would never give memory back again."""
    torch.cuda.synchronize()
    try:
        graph.pool()
    except RuntimeError:
        # The allocator asks the graph whether memory is for it, even now, and a graph that is destroyed might forget its memory once more.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(graph))
        for forget in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with contextlib.suppress(RuntimeError, AttributeError):
                getattr(torch._C, forget)(torch.cuda.current_device(), pool)
    else:
        graph.reset()
