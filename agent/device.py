"""What this machine is, found without torch: the daemon stays light."""

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from fedcybgd.agent.errors import ConfigError
from fedcybgd.shared.contract.agents import DeviceInfo
from fedcybgd.shared.host.machine import cores, memory_total

# Numbers of cards mean the same to nvidia-smi and to torch only in this order.
CARD_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
OF_WINDOWS = "/usr/lib/wsl/lib"
"""Where Linux within Windows has nvidia-smi, whatever the PATH of a service is"""
LISTED = re.compile(r"GPU (\d{1,3}): (.*?)\(UUID")
PART = re.compile(r"\s+MIG (\S*?(\d{1,4})gb\S*)\s.*\(UUID: (MIG-[^)]+)\)")
PART_USABLE = 0.9
"""A part called 1g.5gb has 4,864 MiB, one called 3g.20gb 19,968: 0.95 and 0.975 of it; of a large card less"""
GONE = ("unknown error", "is lost", "requires reset")
"""What is said in the place of a card's memory when the driver has lost it: CUDA does not see it either"""


class GpuMissing(ConfigError):
    """agent.toml chooses a card that is not there: another device is not trained on in its place."""

    code = "gpu_missing"


@dataclass(frozen=True)
class Card:
    name: str
    memory_bytes: int | None
    """None: the card has none of its own, and uses the system's"""
    uuid: str = ""
    number: int = 0
    """As nvidia-smi counts"""


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
    """The first card that CUDA would see: `gpu` if it is given, else what CUDA_VISIBLE_DEVICES names, else all. Of a divided one a part."""
    visible = str(gpu) if gpu is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _undivided(next(iter(_cards()), None))
    first = visible.split(",")[0].strip()
    if first.isascii() and first.isdigit():
        return _undivided(next(iter(_cards()[int(first) : int(first) + 1]), None))
    if first.startswith("MIG-") and (parts := _parts()):
        # Drivers take the older way of writing one (its card and two numbers) too, and list the newer one.
        of_older = parts[:1] if first.startswith("MIG-GPU-") else []
        return next(iter([part for part in parts if part.uuid.startswith(first)] or of_older), None)
    if first.startswith(("GPU-", "MIG-")):
        cards = _cards(with_uuid=True)
        # A prefix is enough for CUDA. A part of a card (MIG) that is not listed is not known, and the first card stands for it.
        named = [card for card in cards if card.uuid.startswith(first)]
        return _undivided(next(iter(named or (cards if not any(card.uuid for card in cards) or first.startswith("MIG-") else [])), None))
    return None  # empty, or no card: CUDA sees none


def _undivided(card: Card | None) -> Card | None:
    """The card itself, or the first of its parts, which is all that CUDA sees of one that is divided (MIG)."""
    return card and next((part for part in _parts() if part.number == card.number), card)


def _cards(with_uuid: bool = False) -> list[Card]:
    output = _ask(f"--query-gpu={'uuid,' if with_uuid else ''}name,memory.total", "--format=csv,noheader,nounits")
    return [card for number, line in enumerate(output.splitlines()) if (card := _card(line, number)) is not None]


def _parts() -> list[Card]:
    """The parts of all cards that are divided, each with the memory that its profile is named after, less what the driver keeps of it."""
    found, number, name = list[Card](), 0, ""
    for line in _ask("-L").splitlines():
        if whole := LISTED.match(line):
            number, name = int(whole[1]), whole[2].strip()
        elif part := PART.match(line):
            found.append(Card(f"{name} MIG {part[1]}", int(int(part[2]) * PART_USABLE * (1 << 30)), part[3], number))
    return found


def _ask(*arguments: str) -> str:
    """What nvidia-smi says; nothing where it is not there or fails."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=OF_WINDOWS)
    if program is None:
        return ""
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=10, check=True, env={**os.environ, **CARD_ORDER}
        ).stdout
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""


def _card(line: str, number: int) -> Card | None:
    """`GPU-1b2c…, NVIDIA H100, 81559`, with or without the first; the last is [N/A] where card and system share their memory."""
    front, comma, last = line.rpartition(",")
    if not comma:
        return None
    uuid, _, name = front.partition(",") if front.strip().startswith(("GPU-", "MIG-")) else ("", "", front)
    last = last.strip().removesuffix("MiB").strip()
    if last.isascii() and last.isdigit():
        return Card(name.strip(), int(last) << 20, uuid.strip(), number)
    if any(word in last.lower() for word in GONE):
        return None
    return Card(name.strip(), None, uuid.strip(), number) if last.startswith(("[", "N/A")) else None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - not a file on a disk
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()[:200]
    except OSError:
        pass
    return platform.processor()[:200]
