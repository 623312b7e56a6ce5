"""What this process may use of its machine: memory, cores and open files, within the limits of a container (cgroup v1 and v2)."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")
UNIFIED = "unified"
"""Where cgroup v2 lies beside v1"""
NO_LIMIT = 1 << 60
"""cgroup v1 writes a number near 2^63 where there is no limit."""

FILES_AT_MOST = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What the groups that this process is in allow together; None where none of them limits it."""

    memory_bytes: int | None = None
    memory_left: int | None = None
    """of that, what is not in use"""
    cores: float | None = None


def limits(root: Path = CGROUPS, mine: Path = MINE) -> Limits:
    """The strictest limit of the process's own group and of all above it."""
    memory, left, cores = [], [], []
    for folder in _groups(root, mine):
        # v2 first, then the names of v1.
        found = [_number(folder / f) for f in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limit = min((n for n in (*found, _stated(folder, "hierarchical_memory_limit")) if n and n > 0), default=None)
        if limit is not None and limit < NO_LIMIT:
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
            memory.append(limit)
            left.append(max(0, limit - max(0, used - _droppable(folder))))
        if (share := _quota(folder)) is not None:
            cores.append(share)
    return Limits(min(memory, default=None), min(left, default=None), min(cores, default=None))


def memory_total(root: Path = CGROUPS, mine: Path = MINE) -> int:
    total = _of_machine("total", "SC_PHYS_PAGES")
    limit = limits(root, mine).memory_bytes
    return total if limit is None else min(total, limit)


def memory_available(root: Path = CGROUPS, mine: Path = MINE) -> int:
    available = _of_machine("available", "SC_AVPHYS_PAGES")
    left = limits(root, mine).memory_left
    return available if left is None else min(available, left)


def _of_machine(what: str, pages: str) -> int:
    """Bytes of memory; where /proc/meminfo cannot be read (lxcfs that has ended, say), as the kernel itself answers."""
    try:
        return int(getattr(psutil.virtual_memory(), what))
    except (OSError, ValueError, LookupError):
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def cores(root: Path = CGROUPS, mine: Path = MINE) -> int:
    """Whole cores: one and a half are one, for threads that wait for each other."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = limits(root, mine).cores
    return count if share is None else max(1, min(count, math.floor(share)))


def raise_open_files() -> int:
    """Let this process have as many files open as the system allows it, up to FILES_AT_MOST; how many that is."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_AT_MOST if hard == resource.RLIM_INFINITY else min(hard, FILES_AT_MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # some systems allow less than they say
            return soft
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES_AT_MOST if files == resource.RLIM_INFINITY else files


def _groups(root: Path, mine: Path) -> Iterator[Path]:
    """The folders of the process's groups and of those above them, up to the top of each hierarchy.

    In a container the paths may be those of the host, which are not there; the top of what is mounted is its own group then.
    """
    try:
        lines = mine.read_text("utf-8", "surrogateescape").splitlines()  # names of groups are bytes, as those of files
    except OSError:
        lines = []
    for line in lines or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        named = [controllers, *controllers.split(",")] if controllers else ["", UNIFIED]
        for top in {root / name for name in named if not name.startswith("name=")}:
            folder = top / path.lstrip("/")
            inside = [folder, *folder.parents]
            for place in inside[: inside.index(top) + 1] if top in inside else [top]:
                if place.is_dir():
                    yield place


def _quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = str(_number(folder / "cpu.cfs_quota_us") or "max"), str(_number(folder / "cpu.cfs_period_us") or 0)
    if not quota.isdigit() or not period.isdigit() or not int(quota) or not int(period):
        return None
    return int(quota) / int(period)


def _droppable(folder: Path) -> int:
    """Bytes of files that the kernel drops when memory is wanted: they are not in anybody's way."""
    return _stated(folder, "inactive_file", "total_inactive_file") or 0


def _stated(folder: Path, *names: str) -> int | None:
    """A number of memory.stat by the first of its names there; cgroup v1 tells there of limits of groups above, which a container does not see."""
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in names:
                return int(value)
    except (OSError, ValueError):
        pass
    return None


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, or a word as `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
