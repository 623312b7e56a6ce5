"""Full disks, and machines that have nothing to give: said in few lines, and over by itself."""

import errno
import logging
import os
import sqlite3
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import exc

from fedcybgd.client.errors import FileUnusable
from fedcybgd.client.exports import claim
from fedcybgd.coordinator.api.shortages import answer_shortages
from fedcybgd.coordinator.db.outage import DatabaseAway, OutageLog
from fedcybgd.coordinator.storage import StoreFull, full, open_store, open_uploads
from fedcybgd.coordinator.storage.full import FullDisks, full_disk_told
from fedcybgd.coordinator.storage.uploads import UploadKey
from fedcybgd.shared.contract.views import RunSummary
from fedcybgd.shared.files.disk import says_full
from fedcybgd.shared.host.rarely import Rarely

PLACE = Path("/srv/fedcoord/blobs")


def stopped() -> float:
    """A clock on which no test is too slow."""
    return 0.0


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(full, "_free", lambda _: free)


def test_it_is_said_ever_more_rarely_and_anew_once_it_was_quiet() -> None:
    now = [0.0]
    rarely = Rarely(lambda: now[0])
    said = []
    for second in range(0, 86_400, 5):
        now[0] = float(second)
        if rarely.is_due():
            said.append(second)
    assert said[:5] == [0, 10, 30, 70, 150]
    assert len(said) < 40
    now[0] += 200
    assert rarely.is_due()


def test_a_disk_is_full_from_the_first_failure_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disks = FullDisks(PLACE, stopped)
    room(monkeypatch, 500)
    for _ in range(1000):
        with pytest.raises(StoreFull) as caught, full_disk_told(PLACE, 7_000_000):
            raise OSError(errno.ENOSPC, "No space left on device")
        disks.say(caught.value)
    assert disks.names == ["blobs"]
    [news] = disks.look()
    assert (news.code, news.level) == ("disk_full", "error")
    assert f"{PLACE} is full: 500 bytes are free, 7000000 or more are needed" in news.text
    assert [record.name for record in caplog.records if record.name == "fedcoord.disk"] == ["fedcoord.disk"]
    room(monkeypatch, 6_999_999)
    assert disks.look() == [news], "not yet, and it could not be written down"
    disks.told([news])
    room(monkeypatch, 7_000_000)
    assert [one.code for one in disks.look()] == ["disk_free"]
    assert disks.names == []


@pytest.mark.parametrize("call", ["write", "open"])
def test_the_store_says_which_disk_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = open_store(tmp_path / "blobs")

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with pytest.raises(StoreFull) as caught:  # noqa: PT012 - both ways to fail are meant
        if call == "open":
            monkeypatch.setattr(Path, "open", no_room)
        with store.writer() as writer:
            monkeypatch.setattr(os, "fsync", no_room)
            writer.write(b"x" * 5000)
    assert caught.value.detail["place"] == str(tmp_path / "blobs")
    assert caught.value.detail["needed"] == (5000 if call == "write" else 1)


def test_uploads_say_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = open_uploads(tmp_path / "uploads", open_store(tmp_path / "blobs"))
    key = UploadKey("asg_1", "agt_1", "ab" * 32)
    uploads.append(key, 0, b"x", lambda: None)
    real = os.fdopen

    def fdopen(*args: object, **more: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", fdopen)
    with pytest.raises(StoreFull) as caught:
        uploads.append(key, 1, b"y" * 300, lambda: None)
    monkeypatch.setattr(os, "fdopen", real)
    assert (caught.value.detail["place"], caught.value.detail["needed"]) == (str(tmp_path / "uploads"), 300)
    assert uploads.offset(key) == 1


def failing(error: Exception) -> tuple[TestClient, FullDisks]:
    app = FastAPI()
    disks = app.state.disks = FullDisks(PLACE, stopped)
    answer_shortages(app)

    @app.get("/")
    def fail() -> None:
        raise error

    return TestClient(app), disks


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoreFull("full", place="/secret/path", needed=5), 507, "disk_full"),
        (OSError(errno.ENOSPC, "No space left on device", "/secret/path"), 507, "disk_full"),
        (OSError(errno.EMFILE, "Too many open files", "/secret/path"), 503, "exhausted"),
        (OSError(errno.ENFILE, "Too many open files in system"), 503, "exhausted"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 503, "exhausted"),
        (MemoryError(), 503, "exhausted"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/secret/path"), 500, "internal_error"),
    ],
)
def test_whoever_asks_is_told_to_come_again_and_the_log_stays_small(
    error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, 0)
    monkeypatch.setattr("fedcybgd.coordinator.api.shortages._rarely", Rarely(stopped))
    client, disks = failing(error)
    with caplog.at_level(logging.ERROR):
        answers = [client.get("/") for _ in range(20)]
    assert {(a.status_code, a.json()["code"]) for a in answers} == {(status, code)}
    assert "/secret/path" not in answers[0].text
    assert len([r for r in caplog.records if r.name.startswith("fedcoord")]) == (20 if status == 500 else 1)
    assert bool(disks.names) is (status == 507)


def test_a_full_database_is_a_full_disk(caplog: pytest.LogCaptureFixture) -> None:
    disks = FullDisks(PLACE, stopped)
    outages = OutageLog(lambda: disks.lack(Path("/srv/fedcoord/database")), stopped)
    cause = sqlite3.OperationalError("database or disk is full")
    cause.sqlite_errorcode = sqlite3.SQLITE_FULL
    for _ in range(8000):
        outages.say(exc.OperationalError("INSERT", {}, cause))
    assert disks.names == ["database"]
    said = [record.name for record in caplog.records if record.name in ("fedcoord.disk", "fedcoord.database")]
    assert said == ["fedcoord.disk", "fedcoord.database"]
    answer = DatabaseAway(exc.OperationalError("INSERT", {}, cause))
    assert (answer.code, answer.message.partition(";")[0]) == ("database_away", "the disk of the coordinator's database is full")


def test_a_full_disk_leaves_nothing_of_an_export_that_another_try_takes_for_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunSummary.model_construct(id="run_0123456789abcdef", name="intents", model="m")

    def no_room(path: Path, _text: str, **_: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", no_room)
        with pytest.raises(FileUnusable, match="No space left"):
            claim(tmp_path / "out", run, force=False)
    assert list((tmp_path / "out").iterdir()) == []
    assert claim(tmp_path / "out", run, force=False) == frozenset()


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "no space left"), False),
        (ValueError("no"), False),
    ],
)
def test_libraries_say_it_in_words(error: Exception, is_full: bool) -> None:
    assert says_full(error) is is_full
