"""What the images install: every package by version and hash, nothing from a place that is named, nothing below a floor."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGES = {"coordinator": ("coordinator", "postgresql", "parquet", "images", "hub"), "agent": ("parquet", "images")}


def entries(lock: str) -> dict[str, tuple[list[Version], int]]:
    """Versions of each package (several where Python's version decides), and how many hashes the last of them has."""
    found: dict[str, tuple[list[Version], int]] = {}
    for entry in re.split(r"\n(?=[A-Za-z0-9])", (LOCKS / lock).read_text())[1:]:
        name, _, version = re.match(r"([A-Za-z0-9._-]+)(\[.*?\])?==(\S+)", entry).groups()  # type: ignore[union-attr]
        versions, _ = found.get(name, ([], 0))
        found[canonicalize_name(name)] = ([*versions, Version(version)], len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)))
    return found


@pytest.mark.parametrize("lock", ["torch.lock", "torch-cpu.lock", "coordinator.lock", "agent.lock"])
def test_every_package_has_hashes_and_no_place_is_named(lock: str) -> None:
    found = entries(lock)
    assert len(found) > 10
    assert {name for name, (_, hashes) in found.items() if not hashes} == set()
    assert not re.findall(r"https?://|--index|--find-links|file:|@ ", (LOCKS / lock).read_text())


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_needs_is_locked_above_its_floor(image: str) -> None:
    locked = entries("torch.lock") | entries(f"{image}.lock")
    optional = PROJECT["optional-dependencies"]
    wanted = [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in IMAGES[image] for line in optional[extra])]]
    lacking = [r for r in wanted if not any(v in r.specifier for v in locked.get(canonicalize_name(r.name), ([], 0))[0])]
    assert lacking == [], "run `make locks`"


def test_the_images_install_from_the_locks_alone() -> None:
    text = (ROOT / "Dockerfile").read_text()
    installs = [
        part.strip()
        for line in text.splitlines()
        if line.startswith("RUN")
        for part in line.removeprefix("RUN ").split("&&")
        if "pip install" in part
    ]
    assert len(installs) == 5
    for command in installs:
        assert "--require-hashes -r" in command or command == "pip install --no-deps --no-build-isolation ."
    for image in IMAGES:
        assert f"requirements/{image}.lock" in text
    assert "setuptools" in entries("torch.lock")
