"""Memory of a job that works by pieces is asked of the system once, and given back at its end."""

import json
import subprocess
import sys

import pytest

PIECES = """
import json, resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from fedcybgd.coordinator.engine import malloc

malloc.return_freed()
import torch
torch.set_num_threads(1)

def pieces(times):
    for _ in range(times):
        torch.empty(1 << 20).fill_(1.0)

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(pieces, [times, times]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

faults(3)
outside, size = faults(20), resident()
try:
    with malloc.kept():
        faults(20)
        inside = faults(20)
        held = [torch.empty(1 << 20).fill_(1.0) for _ in range(20)]
        del held
        kept = resident() - size
        raise ValueError
except ValueError:
    pass
print(json.dumps({"outside": outside, "inside": inside, "kept": kept, "left": resident() - size, "page": resource.getpagesize()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_pieces_share_their_memory_and_nothing_of_it_stays() -> None:
    found = json.loads(subprocess.run([sys.executable, "-c", PIECES], check=True, stdout=subprocess.PIPE, timeout=120).stdout)
    whole = 40 * (4 << 20) // found["page"]
    assert found["outside"] >= 0.9 * whole
    assert found["inside"] < 0.6 * whole  # what small things lie in is not free again as a whole
    assert found["kept"] > 60 << 20
    assert found["left"] < 8 << 20
