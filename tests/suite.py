"""Runs all tests, and the few that fail once more, alone: what fails twice is broken, what fails once is unstable and is named.

    python -m tests.suite [PYTEST ARGUMENT ...]

Tests of real processes and real time can lose a race that no user would lose, when a machine is busy. Who sees a test named as unstable
mends the test: it is a fault, though not one that says that the product is broken.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(".pytest_cache/v/cache/lastfailed")
FEW = 5
"""More than so many failures are no accident."""
FAILED = 1
"""What pytest exits with when tests failed, and nothing worse happened."""


def suite(arguments: list[str]) -> int:
    """The exit status of pytest: 0 also where every failed test passed when it was run again."""
    CACHE.unlink(missing_ok=True)
    status = _pytest(arguments)
    failed = sorted(json.loads(CACHE.read_text(encoding="utf-8"))) if status == FAILED and CACHE.exists() else []
    if not 0 < len(failed) <= FEW or not all("::" in name for name in failed):  # what was not even collected is no accident
        return status
    print(f"\n{len(failed)} failed; run again, alone:", flush=True)
    status = _pytest([*failed, "--workers", "0"])
    for test in failed if status == 0 else []:
        print(f"UNSTABLE {test}: it failed and then passed; mend it")
    return status


def _pytest(arguments: list[str]) -> int:
    # Hundreds of processes import the same: what one has compiled, the others find.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(suite(sys.argv[1:]))
