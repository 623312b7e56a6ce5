"""`python requirements/lock.py`: writes the lock files of the images, every package by version and hashes.

torch.lock holds torch with all that it needs; the others hold everything but torch and what belongs to an accelerator, so that another
build of torch can take its place. torch-cpu.lock holds the build that needs none; it is not where all others are, so its wheels are to be
fetched first: `pip download --no-deps torch==…+cpu`, from the index that PyTorch names. Needs `uv` (pip install uv).
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent / "pyproject.toml"
TORCH = "torch==2.13.0"
IMAGES = {"coordinator": ("coordinator", "postgresql", "parquet", "images", "hub"), "agent": ("parquet", "images")}
HEAD = "# Written by `make locks`; change pyproject.toml, not this file.\n"
COMMAND = [
    "uv",
    "pip",
    "compile",
    "--quiet",
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
]


def compiled(sources: list[str], *options: str) -> str:
    words = [*COMMAND, "--no-emit-index-url", "--no-emit-find-links", "--no-config", *options, *sources]
    return HEAD + subprocess.run(words, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout


def packages(lock: str) -> list[str]:
    return re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)


def of_an_accelerator(lock: str) -> list[str]:
    return [name for name in packages(lock) if re.match(r"torch$|triton$|nvidia-|cuda-", name)]


def without_accelerator(torch: str, builds: Path) -> str:
    """A lock with the same versions of everything, but for torch's build, which lies in a folder, and what that one does without."""
    wheels = sorted(builds.glob(f"{TORCH.replace('==', '-')}+cpu-*.whl"))
    assert wheels, f"{builds} has no build of {TORCH} for the CPU"
    hashes = "".join(f" \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in wheels)
    entries = re.split(r"\n(?=[A-Za-z0-9])", torch)[1:]
    kept = [entry.rstrip() for entry in entries if packages(entry)[0] not in of_an_accelerator(torch)]
    return HEAD + "\n".join(sorted([*kept, f"{TORCH}+cpu{hashes}"])) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu-builds", type=Path, metavar="FOLDER", help="with the wheels of torch for the CPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "torch.in"
        # setuptools builds the package itself, without fetching a build environment of its own
        wanted.write_text(f"{TORCH}\nsetuptools>=77\nwheel\n")
        torch = compiled([str(wanted)])
    (HERE / "torch.lock").write_text(torch)
    if options.cpu_builds:
        (HERE / "torch-cpu.lock").write_text(without_accelerator(torch, options.cpu_builds))
    for image, extras in IMAGES.items():
        chosen = [word for extra in extras for word in ("--extra", extra)]
        without = [word for name in of_an_accelerator(torch) for word in ("--no-emit-package", name)]
        (HERE / f"{image}.lock").write_text(compiled([str(PROJECT)], "--constraints", str(HERE / "torch.lock"), *chosen, *without))


if __name__ == "__main__":
    main()
