"""What `pip install` brings from a folder of wheels, without a network: one package, whole, that works and has types far from any checkout.

Only our wheel lies in the folder. What it needs is lent by the environment of the tests, a link for each package: all but ourselves.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.processes import wait_for

ROOT = Path(__file__).parents[2]
FOLDERS = ("coordinator", "agent", "shared", "migrations")
BUILD = "import setuptools.build_meta as backend, sys; print(getattr(backend, 'build_' + sys.argv[1])(sys.argv[2]))"


def build(what: str, source: Path, target: Path) -> Path:
    """Have the build backend make `what` of `source`, as pip would; nothing is fetched."""
    done = subprocess.run([sys.executable, "-c", BUILD, what, str(target)], cwd=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def written() -> set[str]:
    """Every file that a program of ours may need, by its place in the wheel."""
    found = {f"fedcybgd/{path.name}" for path in (ROOT / "fedcybgd").iterdir() if path.is_file()}
    for top in [*(ROOT / folder for folder in FOLDERS), *(p for p in (ROOT / "fedcybgd").iterdir() if p.is_dir() and not p.is_symlink())]:
        found |= {
            f"fedcybgd/{top.name}/{path.relative_to(top).as_posix()}" for path in top.rglob("*") if path.is_file() and path.suffix != ".pyc"
        }
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel of the checkout, and one of its source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    (source := folder / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fedcybgd", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.unpack_archive(build("sdist", source, folder), folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", source, folder), build("wheel", unpacked, folder / "again")


def lend(target: Path) -> None:
    """Everything that is installed here, but for ourselves and what `.pth` files lead to."""
    target.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("fedcybgd", "__editable__")) and path.suffix != ".pth":
            (target / path.name).symlink_to(path)


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment into which pip has put the wheel by its name, and found there all that the wheel asks for."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    lend(place / "lent")
    (site / "lent.pth").write_text(f"{place / 'lent'}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin/python"), "--disable-pip-version-check"]
    asked = [*pip, "install", "--no-index", "--find-links", str(built[0].parent), "fedcybgd[coordinator,postgresql,parquet,images]"]
    nothing_else = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))} | {
        "PIP_CONFIG_FILE": os.devnull
    }
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, env=nothing_else)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")} == {"fedcybgd", "lent.pth"}
    return place / "bin"


def call(installed: Path, folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(installed / command[0]), *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_package_with_every_file(built: tuple[Path, Path]) -> None:
    for wheel in built:
        names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
        assert {name.split("/")[0] for name in names} == {"fedcybgd", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
        assert {name for name in names if name.startswith("fedcybgd/")} == written()


def test_both_programs_say_which_they_are(installed: Path, tmp_path: Path) -> None:
    for command in ("fedcoord", "fedagent"):
        assert call(installed, tmp_path, command, "--version").split() == [command, "0.1.0"]
    program = "import fedcybgd; print(fedcybgd.__file__)"
    assert Path(call(installed, tmp_path, "python", "-c", program).strip()).is_relative_to(installed.parent)


def test_a_coordinator_is_served_with_its_schema_and_its_pages(installed: Path, tmp_path: Path) -> None:
    """Migrations, templates and static files are found where the wheel has put them."""
    home, ready = tmp_path / "home", tmp_path / "ready.json"
    command = [str(installed / "fedcoord"), "serve", "--home", str(home), "--port", "0", "--ready-file", str(ready)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"FEDCOORD_LANES": "none"}
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log) as served:
        try:
            url = wait_for(lambda: ready.exists() and json.loads(ready.read_text()))["ready"]["url"]
            assert "FedCyBGD" in httpx.get(f"{url}/admin").text
            for name in (path.name for path in (ROOT / "coordinator/dashboard/static").iterdir() if path.is_file()):
                assert httpx.get(f"{url}/admin/files/{name}").status_code == 200, name
            schema = json.loads(call(installed, tmp_path, "fedcoord", "db", "current", "--home", str(home), "--json"))
            assert schema["schema"] == schema["newest"] == max(path.name[:4] for path in (ROOT / "migrations/versions").glob("0*.py"))
        finally:
            served.terminate()
    assert served.returncode == 0


def test_types_come_with_it(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fedcybgd.shared.contract.digests import digest_of\nreveal_type(digest_of(b''))\ndigest_of('text')\n"
    )
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "python"), "--strict", "mine.py"]
    said = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=120).stdout
    assert 'Revealed type is "str"' in said.replace("builtins.", ""), said
    assert 'incompatible type "str"; expected "bytes"' in said
    assert "Found 1 error in 1 file" in said
