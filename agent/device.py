"""What this machine is, found without torch: the daemon stays light."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

from fedcybgd.agent.errors import ConfigError
from fedcybgd.shared.contract.agents import DeviceInfo
from fedcybgd.shared.host.machine import cores, memory_total

# Numbers of cards mean the same to nvidia-smi and to torch only in this order.
CARD_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class GpuMissing(ConfigError):
    """agent.toml chooses a card that is not there: another device is not trained on in its place."""

    code = "gpu_missing"


@dataclass(frozen=True)
class Card:
    name: str
    memory_bytes: int | None
    """None: the card has none of its own, and uses the system's"""
    uuid: str = ""


def find_device(wanted: str = "auto", gpu: int | str | None = None) -> DeviceInfo:
    """The device that training would use, and its memory in bytes, within the limits of a container; `gpu` chooses among several.

    Raises `GpuMissing` where it chooses none.
    """
    memory = memory_total()
    cpu = DeviceInfo(kind="cpu", name=_cpu_name(), cores=cores(), memory_bytes=memory)
    if wanted in ("auto", "cuda") and (card := _chosen(gpu)) is not None:
        return cpu.model_copy(update={"kind": "cuda", "name": card.name[:200], "accelerator_bytes": card.memory_bytes or memory})
    if wanted in ("auto", "cuda") and gpu is not None:
        count = len(_cards())
        there = f"nvidia-smi lists {count}, counted from 0" if count else "nvidia-smi lists none, or is not on the PATH"
        raise GpuMissing(f"device.gpu = {gpu} is no GPU of this machine: {there}; correct agent.toml")
    if wanted in ("auto", "mps") and sys.platform == "darwin" and platform.machine() == "arm64":
        return cpu.model_copy(update={"kind": "mps", "accelerator_bytes": memory})
    return cpu


def cards_visible() -> int:
    """How many cards CUDA would see, of which a training process takes one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(_cards()) if visible is None else len([one for one in visible.split(",") if one.strip()])


def _chosen(gpu: int | str | None) -> Card | None:
    """The first card that CUDA would see: `gpu` if it is given, else what CUDA_VISIBLE_DEVICES names, else all."""
    visible = str(gpu) if gpu is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return next(iter(_cards()), None)
    first = visible.split(",")[0].strip()
    if first.isdigit():
        return next(iter(_cards()[int(first) : int(first) + 1]), None)
    if first.startswith(("GPU-", "MIG-")):
        cards = _cards(with_uuid=True)
        # A prefix is enough for CUDA. A part of a card (MIG) is not listed: its card is not known, and the first stands for it.
        named = [card for card in cards if card.uuid.startswith(first)]
        return next(iter(named or (cards if not any(card.uuid for card in cards) or first.startswith("MIG-") else [])), None)
    return None  # empty, or no card: CUDA sees none


def _cards(with_uuid: bool = False) -> list[Card]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={'uuid,' if with_uuid else ''}name,memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True, env={**os.environ, **CARD_ORDER}).stdout
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [card for line in output.splitlines() if (card := _card(line)) is not None]


def _card(line: str) -> Card | None:
    """`GPU-1b2c…, NVIDIA H100, 81559`, with or without the first; the last is [N/A] where card and system share their memory."""
    front, comma, last = line.rpartition(",")
    if not comma:
        return None
    uuid, _, name = front.partition(",") if front.strip().startswith(("GPU-", "MIG-")) else ("", "", front)
    last = last.strip()
    if last.isdigit():
        return Card(name.strip(), int(last) << 20, uuid.strip())
    return Card(name.strip(), None, uuid.strip()) if last.startswith(("[", "N/A")) else None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - not a file on a disk
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()[:200]
    except OSError:
        pass
    return platform.processor()[:200]
