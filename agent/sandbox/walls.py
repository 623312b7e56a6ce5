"""The walls around a training process: what it may read and write, and how they are raised."""

import contextlib
import os
import resource
import signal
import site
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

import fedcybgd
from fedcybgd.agent.sandbox import files, kernel, network

SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store", "/proc", "/sys", "/etc/alternatives", "/etc/group", "/etc/ld.so.cache",
    "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/nsswitch.conf", "/etc/os-release", "/etc/passwd", "/etc/OpenCL", "/etc/nvidia",
    "/run/nvidia-persistenced", "/var/lib/dcgm-exporter",
)  # fmt: skip
THREADS = Path("/proc/self/task")
"""Drivers of NVIDIA name the threads that they start, by a file in there. From version 570 on they give up (error 304) where they may not."""
PEAK = Path("/proc/self/clear_refs")
"""Written to have the peak of memory forgotten: each visit tells its own."""
DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "nvidia*", "dri", "kfd")
OVER_FILES = 0b1111
"""Capabilities to own, read and write what other accounts own: where root runs an agent, its files may be theirs. Landlock holds all the same."""
VARIABLES = frozenset(
    {
        "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED",
        "VIRTUAL_ENV", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "COVERAGE_PROCESS_START",
    }
)  # fmt: skip
FAMILIES = (
    "LC_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "MALLOC_",
    "CUDA_",
    "CUBLAS_",
    "NCCL_",
    "PYTORCH_",
    "TORCH_",
    "HIP_",
    "HSA_",
    "ROCR_",
)
"""Variables that a training process gets, if the daemon has them: how to compute, and nothing that opens a door."""


class Walls(BaseModel):
    """What a training process is left with."""

    work: Path
    """folder that is its home and has its temporary files"""
    read: list[Path]
    write: list[Path]
    largest_file: int
    """bytes"""
    local_sockets: bool
    """for drivers of GPUs"""


class WallsRaised(BaseModel):
    """Which walls stand."""

    network: list[str]
    """by which means there is none"""
    landlock: int
    """its version; 0: the process may do with files whatever its account may"""

    def text(self) -> str:
        files = (
            f"only its own files (Landlock {self.landlock})" if self.landlock else "ALL files of this account (this kernel has no Landlock)"
        )
        return f"no network ({', '.join(self.network)}), {files}"


def environment(walls: Walls, of: Mapping[str, str]) -> dict[str, str]:
    """What is left of the daemon's variables: no key, no proxy, no name of a service."""
    kept = {name: value for name, value in of.items() if name in VARIABLES or name.startswith(FAMILIES)}
    ours = [str(package_root()), *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    work = str(walls.work)
    return {**kept, "PYTHONPATH": os.pathsep.join(ours), "PYTHONUSERBASE": site.getuserbase(), "HOME": work, "TMPDIR": work}


def _package() -> Path:
    return Path(fedcybgd.__path__[0]).absolute()


def package_root() -> Path:
    """Where Python finds `fedcybgd`: its files may be somebody's own."""
    return _package().parent


def dies_with_its_parent(parent: int) -> None:
    """Be killed when the process that started this one is gone, however it went and whatever goes on here."""
    with contextlib.suppress(OSError):
        kernel.prctl(kernel.PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def raise_walls(walls: Walls) -> WallsRaised:
    """For good, for this process and all that it starts; it must have one thread yet."""
    _lower(resource.RLIMIT_FSIZE, walls.largest_file)
    _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # rather this process than another of this machine
    try:
        landlock = files.leave([package_root()], [*_python(walls), *map(Path, SYSTEM), *walls.read], walls.write, _devices(), _own(walls))
    except OSError:
        landlock = 0
    standing = WallsRaised(network=network.take(walls.local_sockets), landlock=landlock)
    with contextlib.suppress(OSError):
        kernel.keep_capabilities(OVER_FILES)
    return standing


def _lower(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _python(walls: Walls) -> list[Path]:
    """Where the interpreter and its packages lie, ours among them."""
    package = _package()
    ours = [package, *((package / linked).resolve() for linked in ("agent", "shared"))]
    private = [path.parent for path in (*walls.write, *walls.read)]
    others = [Path(entry).resolve() for entry in (*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix) if entry]
    # What would open a folder with the agent's own files is left out: a checkout that an agent's home lies in, say.
    return [*ours, *(path for path in others if not any(place.is_relative_to(path) for place in private))]


def _own(walls: Walls) -> list[Path]:
    """Where this process has its peak of memory forgotten, and names its threads, if it may use a card. Places of its own, and of no other
    process: they are held on to, so that the kernel does not make others in their stead."""
    held = []
    for place in (PEAK, THREADS) if walls.local_sockets else (PEAK,):
        with contextlib.suppress(OSError):
            os.open(place, os.O_PATH | os.O_CLOEXEC)
            held.append(place)
    return held


def _devices() -> list[Path]:
    return [path for pattern in DEVICES for path in Path("/dev").glob(pattern)]
