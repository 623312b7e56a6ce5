"""What this machine is, found without torch: the daemon stays light."""

import os
import platform
import shutil
import subprocess
import sys

import psutil

from shared.protocol import DeviceInfo


def find_device(wanted: str = "auto") -> DeviceInfo:
    """The device that training would use, and its memory in bytes."""
    memory = int(psutil.virtual_memory().total)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpu = DeviceInfo(kind="cpu", name=_cpu_name(), cores=cores, memory_bytes=memory)
    if wanted in ("auto", "cuda") and (card := _nvidia()) is not None:
        return cpu.model_copy(update={"kind": "cuda", "name": card[0], "accelerator_bytes": card[1]})
    if wanted in ("auto", "mps") and sys.platform == "darwin" and platform.machine() == "arm64":
        return cpu.model_copy(update={"kind": "mps", "accelerator_bytes": memory})
    return cpu


def _nvidia() -> tuple[str, int] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        name, megabytes = lines[0].rsplit(",", 1)
        return name.strip(), int(megabytes) * 1024 * 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - not a file on a disk
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()[:200]
    except OSError:
        pass
    return platform.processor()[:200]
