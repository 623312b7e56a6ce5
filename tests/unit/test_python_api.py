"""The Python API: light to import, typed, and what it writes and reads beside the processes it starts."""

import ast
import errno
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcybgd import Coordinator, FedError
from fedcybgd.client.tracking import next_wait_s
from fedcybgd.local.toml import dumps
from fedcybgd.shared.contract.starting import Ready, StartReport
from fedcybgd.shared.contract.words import ErrorBody
from fedcybgd.shared.host import started

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "fastapi", "sqlalchemy", "alembic", "uvicorn"}
REPORT = StartReport(ready=Ready(url="http://127.0.0.1:1", pid=1, version="0", operator_key="fco_x"))


def test_it_costs_nothing_until_it_is_used() -> None:
    program = (
        f"import sys, fedcybgd; first = {{'pydantic', 'httpx', 'typer', *{sorted(HEAVY)}}} & set(sys.modules);"
        f"names = [getattr(fedcybgd, name) for name in fedcybgd.__all__]; print(sorted(first), sorted(set({sorted(HEAVY)}) & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    assert found.stdout.strip() == "[] []"


def test_what_a_program_calls_has_types() -> None:
    """No `Any` in what public methods take and give; every one says what it promises."""
    found, count = set(), 0
    for path in [*(ROOT / "fedcybgd/client").glob("*.py"), *(ROOT / "fedcybgd/local").glob("*.py")]:
        for kind in (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)):
            for method in (n for n in kind.body if isinstance(n, ast.FunctionDef) and (not n.name.startswith("_") or n.name == "__init__")):
                arguments = [*method.args.args, *method.args.kwonlyargs, *filter(None, [method.args.kwarg, method.args.vararg])]
                annotations = [a.annotation for a in arguments if a.arg not in ("self", "cls")] + [method.returns]
                count += 1
                if any(a is None or "Any" in ast.unparse(a) for a in annotations):
                    found.add(f"{path.stem}.{kind.name}.{method.name}")
    assert count > 60
    assert found == {"errors.Refused.__init__"}, "only `detail` of an answer is anything"


VALUES = st.recursive(
    st.text()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.text(), max_size=3),
    lambda below: st.dictionaries(st.text(), below, max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_settings_are_read_as_they_were_written(values: dict[str, object]) -> None:
    assert tomllib.loads(dumps(values)) == values  # type: ignore[arg-type]


def test_a_report_is_whole_and_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    assert started.told(file) is None
    file.write_text('{"ready": {"url": "old')
    assert started.told(file) is None
    started.clear(file)
    assert list(tmp_path.iterdir()) == []
    before = os.umask(0)
    try:
        started.tell(file, REPORT)
    finally:
        os.umask(before)
    assert started.told(file) == REPORT
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    started.tell(file, StartReport(failed=ErrorBody(code="home_taken", message="m")))
    assert [path.name for path in tmp_path.iterdir()] == ["ready.json"]


@pytest.mark.parametrize("place", ["missing/ready.json", "file/ready.json", "folder"])
def test_a_report_that_cannot_be_written_is_said_before_anything_begins(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(started.ReadyFileUnusable, match="--ready-file names another"):
        started.clear(tmp_path / place)


def test_a_report_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".ready.json.part").symlink_to(victim)
    with pytest.raises(started.ReadyFileUnusable):
        started.clear(tmp_path / "ready.json")
    assert victim.read_text() == "mine"


def test_a_process_stops_when_its_input_ends() -> None:
    program = "import signal; from fedcybgd.shared.host.started import stop_at_eof; stop_at_eof(); print('up', flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdin.write(b"something else\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.stdin.close()
    assert process.wait(30) == -15
    process.stdout.close()


@pytest.mark.parametrize("name", ["treads", "home_", "FEDCOORD_THREADS", "url", "blobs"])
def test_a_setting_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(FedError) as unknown:
        Coordinator.local(**{name: 1})
    assert unknown.value.code == "setting_unknown"
    assert name in unknown.value.message


def test_a_home_that_cannot_be_is_an_error_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedError) as unusable:
        Coordinator.local(tmp_path / "file" / "home")
    assert unusable.value.code == "home_unusable"


def test_a_full_disk_under_a_home_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(file: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(FedError) as full:
        Coordinator.local(tmp_path / "home")
    assert full.value.code == "disk_full"
    assert "free space" in full.value.message


def test_a_tracker_looks_ever_more_rarely_while_nothing_moves() -> None:
    waits, last = [], 2.0
    for moved in (True, False, False, False, False, False, False, False, True, False):
        waits.append(last := next_wait_s(last, 2.0, moved))
    assert waits == [2.0, 3.0, 4.5, 6.75, 10.125, 15.1875, 16.0, 16.0, 2.0, 3.0]
