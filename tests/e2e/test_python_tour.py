"""docs/python.md does what it says, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PROGRAM = """
import pathlib, re, sys, psutil
page = pathlib.Path(sys.argv[1]).read_text()
scope = {"__name__": "tour"}
for block in re.findall(r"^```python\\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
    exec(compile(block, "python.md", "exec"), scope)
assert not psutil.Process().children(recursive=True)
assert scope["done"].evaluations[-1].loss < scope["done"].evaluations[0].loss
assert scope["model"].config.num_labels == 2
"""


def test_the_tour_of_the_documentation(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "docs/python.md")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 4 rounds: loss" in done.stdout
    assert "['berlin', 'oslo']" in done.stdout
    assert "invalid_transition" in done.stdout
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(("fedcoord-", "fedagent-"))]
    assert left == []
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
