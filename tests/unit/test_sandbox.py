"""What a training process can no longer do, whoever has taken it over: tried in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent.sandbox import files
from fedcybgd.agent.sandbox.walls import Walls, environment
from fedcybgd.agent.settings import Config, Home
from fedcybgd.agent.trainer_process import TrainerProcess
from tests.support.processes import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
TRIES = """
import ctypes, encodings.idna, json, os, pathlib, resource, signal, socket, subprocess, sys, threading
from fedcybgd.agent.sandbox.walls import Walls, dies_with_its_parent, raise_walls
dies_with_its_parent(int(sys.argv[2]))
if len(sys.argv) > 4: os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
standing = raise_walls(Walls.model_validate_json(sys.argv[1]))
home, work = pathlib.Path(sys.argv[3]), pathlib.Path.cwd()
tries = {
    "tcp": lambda: socket.create_connection(("127.0.0.1", 22), timeout=2), "udp": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "raw": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "unix": lambda: socket.socket(socket.AF_UNIX), "name": lambda: socket.getaddrinfo("coordinator.example", 80),
    "child": lambda: subprocess.run([sys.executable, "-S", "-c", "import socket; socket.socket()"], check=True, capture_output=True),
    "thread": lambda: in_a_thread(socket.socket),
    "credentials": lambda: (home / "credentials.json").read_text(), "policy": lambda: (home / "policy.toml").write_text("[most]"),
    "settings": lambda: (home / "agent.toml").unlink(), "link": lambda: os.link(home / "credentials.json", work / "mine"),
    "through a link": lambda: (os.symlink(home / "credentials.json", work / "s"), (work / "s").read_text()),
    "rename": lambda: os.rename(home / "credentials.json", work / "mine"),
    "other rows": lambda: (home / "private.jsonl").read_text(), "spoil rows": lambda: (home / "rows.jsonl").open("a"),
    "environment of the daemon": lambda: pathlib.Path(f"/proc/{sys.argv[2]}/environ").read_text(),
    "memory of the daemon": lambda: open(f"/proc/{sys.argv[2]}/mem", "rb").read(1),
    "signal": lambda: os.kill(int(sys.argv[2]), signal.SIGCONT),
    "host": lambda: pathlib.Path("/etc/hostname").read_text(), "elsewhere": lambda: pathlib.Path("/var/tmp/fedagent-test").write_text("x"),
    "large file": lambda: (work / "large").write_bytes(b"0" * (3 << 20)), "limits": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)),
    "namespace": lambda: unshare(), "rows": lambda: (home / "rows.jsonl").read_text(), "work": lambda: (work / "mine too").write_text("x"),
    "cache": lambda: (home / "cache" / "a.part").rename(home / "cache" / "a"), "peak of memory forgotten": lambda: forget(),
    "thread's name": lambda: in_a_thread(lambda: write_name(f"/proc/self/task/{threading.get_native_id()}/comm")),
    "thread's name, anew": lambda: in_a_thread(lambda: pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("cuda-EvtHandlr")),
    "daemon's name": lambda: write_name(f"/proc/{sys.argv[2]}/task/{sys.argv[2]}/comm"), "other settings of its own": lambda: write_name("/proc/self/comm"),
}
def write_name(place):
    with open(place, "r+") as file: file.write("cuda-EvtHandlr")
def forget():
    taken = bytearray(64 << 20); del taken
    before = peak_mb(); pathlib.Path("/proc/self/clear_refs").write_text("5")
    if peak_mb() > before - 32: raise OSError("it is remembered")
def peak_mb(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
def in_a_thread(do):
    out = []
    def body():
        try: do()
        except OSError as error: out.append(error)
    thread = threading.Thread(target=body); thread.start(); thread.join()
    if out: raise out[0]
def unshare():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000): raise OSError(ctypes.get_errno(), "unshare")
done = []
for name, do in tries.items():
    try: do(); done.append(name)
    except (OSError, ValueError, subprocess.CalledProcessError): pass
print(json.dumps({"done": done, "standing": standing.model_dump(), "variables": sorted(os.environ)}))
"""


def tried(folder: Path, *more: str, local_sockets: bool = False) -> dict[str, Any]:
    home, work = folder / "home", folder / "home" / "work"
    work.mkdir(parents=True)
    (home / "cache").mkdir()
    for name in ("credentials.json", "policy.toml", "agent.toml", "rows.jsonl", "private.jsonl", "cache/a.part"):
        (home / name).write_text("secret")
    if more:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
    walls = Walls(work=work, read=[home / "rows.jsonl"], write=[work, home / "cache"], largest_file=2 << 20, local_sockets=local_sockets)
    variables = {**os.environ, "AWS_SECRET_ACCESS_KEY": "x", "HTTPS_PROXY": "http://user:password@proxy", "FEDCOORD_KEY": "x"}
    words = [sys.executable, "-P", "-c", TRIES, walls.model_dump_json(), str(os.getpid()), str(home), *more]
    ran = subprocess.run(words, cwd=work, env=environment(walls, variables), capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.skipif(not files.version(), reason="this kernel has no Landlock")
def test_nothing_is_left_but_its_own_rows_and_rooms(tmp_path: Path) -> None:
    found = tried(tmp_path)
    assert found["done"] == ["rows", "work", "cache", "peak of memory forgotten"]
    assert found["standing"]["landlock"] == files.version()
    assert "seccomp" in found["standing"]["network"]
    assert not {"AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "FEDCOORD_KEY"} & set(found["variables"])
    assert {"HOME", "TMPDIR", "PATH"} <= set(found["variables"])
    assert (tmp_path / "home" / "credentials.json").read_text() == "secret"


@pytest.mark.skipif(not files.version(), reason="this kernel has no Landlock")
def test_a_card_may_need_sockets_of_this_machine_and_names_for_its_threads_and_gets_no_others(tmp_path: Path) -> None:
    assert tried(tmp_path, local_sockets=True)["done"] == [
        "unix", "rows", "work", "cache", "peak of memory forgotten", "thread's name", "thread's name, anew",
    ]  # fmt: skip


@pytest.mark.skipif(os.getuid() != 0 or not files.version(), reason="only root can become somebody else")
def test_an_account_without_rights_is_walled_in_all_the_same(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    found = tried(tmp_path, "as nobody")
    assert found["done"] == ["rows", "work", "cache"]
    assert "seccomp" in found["standing"]["network"]


@pytest.mark.skipif(not files.version(), reason="this kernel has no Landlock")
def test_the_training_process_that_a_daemon_starts_stands_within_them(tmp_path: Path) -> None:
    values = {"coordinator": "http://localhost", "data": {"path": "rows.jsonl"}}
    process = TrainerProcess(Config.model_validate(values), Home(tmp_path))
    try:
        process.start()
        assert process._process is not None
        status = Path(f"/proc/{process._process.pid}/status")
        wait_for(lambda: "\nSeccomp:\t2\n" in status.read_text())
    finally:
        process.close()


def test_rows_that_took_the_place_of_others_are_read_by_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    values = {"coordinator": "http://localhost", "data": {"mine": {"path": "rows.jsonl", "runs": ["r"]}, "not": {"path": "private.jsonl"}}}
    process = TrainerProcess(Config.model_validate(values), home)
    assert process._walls.read == [home.residuals, rows], "rows that no run may use are not to be read"
    process._command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    try:
        process.start()
        first = process._process
        process.start()
        assert process._process is first
        (tmp_path / "new").write_text("{}{}")
        (tmp_path / "new").replace(rows)
        process.start()
        assert process._process is not first
    finally:
        process.close()
