"""What this machine is, found without torch: the daemon stays light."""

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

from fedcybgd.agent.errors import ConfigError
from fedcybgd.shared.contract.agents import DeviceInfo
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.host.machine import cores, memory_total

# Numbers of cards mean the same to nvidia-smi and to torch only in this order.
CARD_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
OF_WINDOWS = "/usr/lib/wsl/lib"
"""Where Linux within Windows has nvidia-smi, whatever the PATH of a service is"""
LISTED = re.compile(r"GPU (\d{1,3}): (.*?)\(UUID")
PART = re.compile(r"\s+MIG (\S*?(\d{1,4})gb\S*)\s.*\(UUID: (MIG-[^)]+)\)")
PART_USABLE = 0.9
"""A part called 1g.5gb has 4,864 MiB, one called 3g.20gb 19,968: 0.95 and 0.975 of it; of a large card less"""
LINE = re.compile(r"((?:GPU|MIG)-[^,]*,)?(.*?),\s*(?:(\d{1,3}(?:[.,'\s]\d{3}){1,2}|\d{1,9})(?:[.,]\d{1,2})?\s*(?:MiB)?|(\[.*\]?|N/A.*))")
"""`GPU-1b2c…, NVIDIA H100, 81559`, with or without the first; thousands may stand apart, and there may be a fraction"""
NONE_THERE = "No devices were found"
ANSWERS_WITHIN_S = 10.0
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
        return cpu.model_copy(update={"kind": "cuda", "name": one_line(card.name)[:200], "accelerator_bytes": card.memory_bytes or memory})
    if wanted in ("auto", "cuda") and gpu is not None:
        count = len(_cards())
        none = f"lists none: {why}" if (why := why_none()) is not None else "lists none, or is not on the PATH"
        there = f"nvidia-smi lists {count}, counted from 0" if count else f"nvidia-smi {none}"
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
    return _listed(output)


def _parts() -> list[Card]:
    """The parts of all cards that are divided, each with the memory that its profile is named after, less what the driver keeps of it."""
    found, number, name = list[Card](), 0, ""
    for line in _ask("-L").splitlines():
        if whole := LISTED.match(line):
            number, name = int(whole[1]), whole[2].strip()
        elif part := PART.match(line):
            found.append(Card(f"{name} MIG {part[1]}", int(int(part[2]) * PART_USABLE * (1 << 30)), part[3], number))
    return found


def why_none() -> str | None:
    """What keeps nvidia-smi from listing any card, in its own words where it has some; None: it is not there, or finds nothing wrong."""
    said = _say("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    if said is None or _listed(said.text) or NONE_THERE in said.text:
        return None
    return one_line(said.text)[:300] or (f"it ended with status {said.failed}" if said.failed else None)


def _ask(*arguments: str) -> str:
    return said.text if (said := _say(*arguments)) is not None else ""


def _say(*arguments: str) -> "_Said | None":
    """What nvidia-smi says, also where it fails: it does so of one card of several, too. None: it is not there."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=OF_WINDOWS)
    if program is None:
        return None
    asked = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8-sig", "errors": "replace"}
    try:
        process = subprocess.Popen([program, *arguments], env={**os.environ, **CARD_ORDER}, **asked)  # type: ignore[call-overload]
    except OSError as error:
        return _Said(f"{program}: {error.strerror}", 1)
    try:
        return _Said(process.communicate(timeout=ANSWERS_WITHIN_S)[0], process.returncode)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: no signal reaches a process that hangs within the driver
        return _Said(f"it did not answer within {ANSWERS_WITHIN_S:g} s", 1)


class _Said(NamedTuple):
    text: str
    failed: int
    """its exit status"""


def _listed(output: str) -> list[Card]:
    lines = [found for line in output.splitlines() if (found := LINE.fullmatch(line.strip())) is not None]
    return [card for number, line in enumerate(lines) if (card := _card(line, number)) is not None]


def _card(line: re.Match[str], number: int) -> Card | None:
    """Its memory is [N/A] where card and system share theirs."""
    uuid, name, memory, word = (line[1] or "").strip(), line[2].strip(), line[3], line[4]
    if memory is not None:
        return Card(name, int(re.sub(r"\D", "", memory)) << 20, uuid, number)
    return None if any(gone in word.lower() for gone in GONE) else Card(name, None, uuid, number)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - not a file on a disk
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()[:200]
    except OSError:
        pass
    return platform.processor()[:200]
