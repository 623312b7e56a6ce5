"""The notebook of examples/ does what it says within a minute, and leaves no process behind."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
AFTERWARDS = """
import psutil
assert not psutil.Process().children(recursive=True)
assert [run.view.state for run in found] == ["completed", "completed"]
for run in found:
    assert run.last.loss < run.base.loss - 0.1, (run.called, run.base.loss, run.last.loss)
assert len(left.lines) == len(right.lines) == 2
assert [text.get_text() for text in left.get_legend().get_texts()] == ["by-block", "averaged"]
assert left.lines[0].get_xdata()[-1] == found[0].view.rounds_done
print("cells:", cells)
"""
MOST_S = 60.0
"""Processor seconds, of all its processes: on one core it takes no longer"""


def test_the_notebook_runs_from_rows_to_a_comparison(tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        if os.environ.get("CI"):
            pytest.fail("matplotlib is not installed, and CI must not skip it")
        pytest.skip("matplotlib is not installed: pip install '.[plots]' to run this test")
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    program = "\n".join([f"cells = {len(cells)}", *cells, AFTERWARDS])
    before = _files()
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "MPLBACKEND": "agg", "MPLCONFIGDIR": str(tmp_path),
    }  # fmt: skip
    began = os.times()
    done = subprocess.run([sys.executable, "-c", program], cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=280)
    ended = os.times()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cells: {len(cells)}" in done.stdout
    assert "averaged: completed after 3 rounds" in done.stdout
    assert _files() == before
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
    used = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert used < MOST_S


def _files() -> dict[Path, float]:
    """Of the examples, and when each was written; what Python compiles of them is beside the point."""
    return {path: path.stat().st_mtime for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
