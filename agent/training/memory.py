"""Measures the peak memory of this process from a point in time on, in bytes."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak beyond a baseline: allocated bytes on an accelerator, resident bytes of the process on a CPU.

    Linux can forget the peak so far (`clear_refs`); elsewhere the peak of the whole process counts, and says too much.
    """

    def __init__(self, device: str, baseline: int) -> None:
        self._device = device
        self._baseline = baseline
        self._before, self._beside = 0, 0
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                CLEAR_REFS.write_text("5")
            except OSError:
                pass

    def take(self, beside: int) -> None:
        """From now on a card has `beside` bytes taken that are of no tensor: what graphs work in."""
        if self._device == "cuda":
            self._before, self._beside = self.peak(), beside
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        if self._device == "cuda":
            return max(self._before, int(torch.cuda.max_memory_allocated()) + self._beside)
        return max(0, _peak_resident() - self._baseline)


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def give_back_memory() -> None:
    """Return freed memory to the system, and to the card: an agent that waits for its next visit should not hold what only training needs."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with contextlib.suppress(RuntimeError):  # a card that is gone has nothing to give back
            torch.cuda.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass  # only glibc has it


def _peak_resident() -> int:
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
