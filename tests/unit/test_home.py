"""A home has one coordinator; what makes it or its database unusable is one line for a person, and changes nothing."""

import errno
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

import fedcybgd
from fedcybgd.coordinator import serve
from fedcybgd.coordinator.cli import _say_hello, app
from fedcybgd.coordinator.db.base import open_engine
from fedcybgd.coordinator.db.models import Audit, SigningKey
from fedcybgd.coordinator.home import (
    DatabaseUnusable,
    HomeFull,
    HomeTaken,
    HomeUnusable,
    NoCoordinator,
    existing_database,
    leave_secret,
    occupied,
    sqlite_file,
    understood,
    write_secret,
)
from fedcybgd.coordinator.serve import agents_served, bind, files_needed, prepare_home
from fedcybgd.coordinator.settings import Settings

HOLD = "import sys, time; from pathlib import Path; from coordinator.home import occupied; from coordinator.settings import Settings\n"
HOLD += "with occupied(Settings(home=Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"


def fedcoord(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fedcybgd.coordinator.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment})


def test_a_second_coordinator_on_a_home_is_refused_until_the_first_is_gone_however_it_ends(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert first.stdout
    assert first.stdout.readline() == b"held\n"
    answer = fedcoord("serve", "--home", str(tmp_path), "--port", "0")
    assert answer.returncode == 1
    assert "a coordinator runs on" in answer.stderr
    assert f"process {first.pid}" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "coordinator.db").exists()
    first.kill()
    first.wait()
    with occupied(Settings(home=tmp_path)):
        pass


def test_another_name_of_the_home_is_the_same_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with occupied(Settings(home=tmp_path / "home")), pytest.raises(HomeTaken), occupied(Settings(home=tmp_path / "link")):
        pass


def test_of_secrets_that_are_left_at_the_same_time_one_stays(tmp_path: Path) -> None:
    leave_secret(tmp_path / "secret", "one")
    leave_secret(tmp_path / "secret", "other")
    assert (tmp_path / "secret").read_text() == "one\n"
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_two_homes_with_one_sqlite_file_are_one_too_many(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one, two = (Settings(home=tmp_path / name, database_url=url) for name in ("one", "two"))
    with occupied(one), pytest.raises(HomeTaken), occupied(two):
        pass
    with occupied(Settings(home=tmp_path / "one")), occupied(Settings(home=tmp_path / "two")):
        pass  # a database each


def test_a_home_is_held_with_postgresql_too(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="postgresql://nobody@127.0.0.1:9/none")
    with occupied(settings), pytest.raises(HomeTaken), occupied(settings):
        pass


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", "a?b=c", "50%", "ü日本"])
def test_the_database_lies_in_its_home_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    assert sqlite_file(Settings(home=tmp_path / name)) == tmp_path / name / "coordinator.db"


def test_a_home_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeUnusable, match="file"), occupied(Settings(home=tmp_path / "file")):
        pass


@pytest.mark.parametrize("words", [[], ["--ready-file", "READY"]])
def test_a_full_disk_is_told_as_one_and_not_as_a_wrong_home(tmp_path: Path, words: list[str]) -> None:
    """No file of the process may have a byte, which the system says as it does of a quota: the lock is the first that needs one."""
    answer = subprocess.run(
        [sys.executable, "-m", "fedcybgd.coordinator.cli", "serve", "--home", str(tmp_path / "home"), "--port", "0",
         *(word.replace("READY", str(tmp_path / "ready.json")) for word in words)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 1, answer.stderr
    assert f"the disk of {tmp_path / 'home'} is full" in answer.stderr
    assert answer.stderr.endswith("free space, then start again [disk_full]\n")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["home.id", "signing.secret", "operator.key"])
def test_whatever_does_not_fit_into_a_home_is_a_full_disk(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(file: Path, *arguments: Any, **more: Any) -> Any:
        if Path(file).name.startswith(place):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, *arguments, **more)

    how, real = (os, os.open) if place != "home.id" else (Path, Path.write_text)
    monkeypatch.setattr(how, real.__name__, opened)
    with pytest.raises(HomeFull, match="is full"):
        prepare_home(Settings(home=tmp_path))


def test_a_database_that_has_no_room_is_a_full_disk(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'small.db'}")
    with pytest.raises(HomeFull) as caught, understood(Settings(home=tmp_path)), engine.connect() as connection:  # noqa: PT012
        connection.execute(text("PRAGMA max_page_count=2"))
        for name in "abcde":
            connection.execute(text(f"CREATE TABLE {name} (x)"))
    assert caught.value.code == "disk_full"


@pytest.mark.parametrize("command", [("operators", "recover"), ("db", "upgrade"), ("db", "current")])
def test_a_command_with_the_wrong_home_makes_nothing(tmp_path: Path, command: tuple[str, ...]) -> None:
    answer = fedcoord(*command, FEDCOORD_HOME=str(tmp_path / "wrong"))
    assert answer.returncode == 1
    assert "there is no coordinator in" in answer.stderr
    assert not (tmp_path / "wrong").exists()


def spoil(file: Path, how: str) -> None:
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif how == "overwritten":
        data = bytearray(file.read_bytes())
        data[:64] = b"x" * 64
        file.write_bytes(data)
    elif how == "not a database":
        file.write_text("rows, columns\n" * 1000)
    else:
        with create_engine(f"sqlite:///{file}").begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))


@pytest.mark.parametrize("how", ["truncated", "overwritten", "not a database", "newer"])
def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path, how: str) -> None:
    settings = Settings(home=tmp_path)
    prepare_home(settings)
    spoil(tmp_path / "coordinator.db", how)
    for begin in (prepare_home, existing_database):
        if how == "newer" and begin is existing_database:
            continue
        with pytest.raises(DatabaseUnusable) as caught:
            begin(settings)
        assert ("9999" if how == "newer" else "restore a backup") in caught.value.message
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:9/none", "nonsense", "mysql://x/y"])
def test_a_database_out_of_reach_is_one_line_without_the_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseUnusable) as caught:
        prepare_home(Settings(home=tmp_path, database_url=url))
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("url", ["mysql://me:secret@db/x", "mysql+pymysql://db/x", "postgres://db/x", "db.example/x"])
def test_what_is_no_database_of_ours_is_said_and_which_are(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseUnusable, match="postgresql://user:password@host/name") as caught:
        prepare_home(Settings(home=tmp_path, database_url=url))
    assert "secret" not in caught.value.message
    assert "install" not in caught.value.message


def test_an_error_of_the_database_quotes_no_value(tmp_path: Path) -> None:
    """A log that is shown to somebody holds no hash, no name, no row of what was asked."""
    assert open_engine("postgresql://me@127.0.0.1:9/none", 2).hide_parameters
    with open_engine(f"sqlite:///{tmp_path / 'one.db'}", 2).connect() as connection, pytest.raises(OperationalError) as caught:
        connection.execute(text("INSERT INTO nowhere VALUES (:key)"), {"key": "fco_secret"})
    assert "fco_secret" not in str(caught.value)


def test_no_coordinator_in_an_empty_database(tmp_path: Path) -> None:
    (tmp_path / "coordinator.db").touch()
    with pytest.raises(NoCoordinator):
        existing_database(Settings(home=tmp_path))


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    program = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 512))\n"
    program += (
        "from fedcybgd.shared.host.machine import raise_open_files; print(raise_open_files(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "512 (512, 512)\n"
    assert (agents_served(512, 40), agents_served(1024, 40), agents_served(64, 40)) == (258, 770, 0)


def test_a_coordinator_that_may_open_too_few_files_does_not_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedcybgd.coordinator.cli", "serve", "--home", str(tmp_path / "c"), "--port", "0"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"64 files open, too few to answer anybody; allow it {files_needed()} or more" in done.stderr
    assert "[too_few_files]" in done.stderr


@pytest.fixture
def ctrl_c_heeded() -> Iterator[None]:
    """Tests that a shell has in its background ignore it, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_heeded")
@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("status",)])
@pytest.mark.parametrize("after_s", [0.15, 0.6])
def test_ctrl_c_in_the_first_seconds_ends_it_without_a_word(tmp_path: Path, command: tuple[str, ...], after_s: float) -> None:
    environment = {**os.environ, "FEDCOORD_HOME": str(tmp_path / "home"), "FEDCOORD_URL": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fedcybgd.coordinator.cli", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    time.sleep(after_s)  # wherever it is by then
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    ours = [file for file in re.findall(r'File "([^"]+)"', said) if Path(file).is_relative_to(fedcybgd.__path__[0])]
    assert ours == [], said  # on a busy machine Python itself may not have come up by then, and then says so
    assert process.returncode in (130, -signal.SIGINT, 1)


def test_the_first_key_is_in_a_file_of_its_owner_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    settings.first_key.symlink_to(tmp_path / "elsewhere")  # of somebody who waits for it
    key = prepare_home(settings)
    assert key is not None
    assert settings.first_key.read_text() == key + "\n"
    assert stat.S_IMODE(settings.first_key.lstat().st_mode) == 0o600
    assert not (tmp_path / "elsewhere").exists()
    with bind("127.0.0.1", 0) as listener:
        _say_hello(settings, listener, "http://127.0.0.1:1", key)
    said = capsys.readouterr()
    assert key not in said.out + said.err
    assert "operator.key" in said.out
    assert prepare_home(settings) is None, "there is one first key"


def test_the_name_of_a_container_is_told_to_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, mark = Settings(home=tmp_path, host="0.0.0.0"), tmp_path / "mark"
    monkeypatch.setattr(serve, "OF_CONTAINERS", (str(mark),))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "2cb0f7ee6d81")
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        _say_hello(settings, listener, "http://127.0.0.1:1", None)
        assert "http://2cb0f7ee6d81:" in capsys.readouterr().out
        mark.touch()
        _say_hello(settings, listener, "http://127.0.0.1:1", None)
    said = capsys.readouterr().out
    assert f"where port {port} of this container is published" in said
    assert "2cb0f7ee6d81" not in said
    behind = Settings(home=tmp_path, host="0.0.0.0", proxies="10.0.0.1", hosts="Coordinator.example, other.example")
    with bind("127.0.0.1", 0) as listener:
        _say_hello(behind, listener, behind.behind or "", "key")
    said = capsys.readouterr().out
    assert "for agents on other machines: https://coordinator.example, or" in said
    assert "export FEDCOORD_URL=https://coordinator.example FEDCOORD_OPERATOR_KEY" in said
    assert "published" not in said
    assert Settings(home=tmp_path, host="0.0.0.0", proxies="10.0.0.1").behind is None
    assert Settings(home=tmp_path, host="0.0.0.0", hosts="coordinator.example").behind is None


def test_a_secret_and_its_name_are_on_the_disk_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bytes]] = []

    def noted(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((place, place.read_bytes() if place.is_file() else b""))

    monkeypatch.setattr(os, "fsync", noted)
    write_secret(tmp_path / "secret", "x")
    assert synced == [(tmp_path / "secret", b"x\n"), (tmp_path, b"")]


def test_keys_that_are_made_on_the_machine_are_in_the_audit_log(tmp_path: Path) -> None:
    prepare_home(Settings(home=tmp_path))
    for command in (("key", "renew"), ("operators", "recover", "ada")):
        assert CliRunner().invoke(app, [*command, "--home", str(tmp_path)]).exit_code == 0
    with existing_database(Settings(home=tmp_path)).reading() as session:
        newest = session.scalars(select(SigningKey.fingerprint).order_by(SigningKey.created_at.desc())).first()
        entries = session.execute(select(Audit.caller, Audit.act, Audit.subject).order_by(Audit.seq)).all()
    assert entries == [("machine", "fedcoord key renew", newest), ("machine", "fedcoord operators recover", "ada")]
