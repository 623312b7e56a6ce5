"""Bytes of files on real connections: whole, in order and counted, whoever reads, however slowly, and wherever the bytes lie."""

import asyncio
import contextlib
import io
import logging
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import trustme
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from fedcybgd.coordinator.api import files
from fedcybgd.coordinator.api.files import BlobResponse
from fedcybgd.coordinator.serve import Server, certificate_of, configured
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.walls import connections, gate, zero_copy
from tests.support.processes import wait_for

SIZE = (24 << 20) + 12_345
"""More than a connection holds that nobody reads."""
WAYS = ["straight", "from the disk", "a system that does not tell", "no sendfile", "no file", "tls"]


class Served:
    """A file behind a real server, of which `/` is all and `/FROM-TO` a part."""

    def __init__(self, folder: Path, settings: Settings, loop: str, is_file: bool) -> None:
        self._is_file = is_file
        self.path, self.counted, self.closed, self.passed = folder / "file", list[int](), list[bool](), 0
        self.data = os.urandom(SIZE)
        self.path.write_bytes(self.data)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._certificate = certificate_of(settings)
        config = configured(zero_copy.ZeroCopy(self._answer), settings, loop=loop, lifespan="off")  # type: ignore[arg-type]
        config.timeout_graceful_shutdown = 1
        self.server = Server(config, self._certificate)
        ready = threading.Event()
        self.server.on_ready = ready.set
        self.thread = threading.Thread(target=self.server.run, args=([self._listener],), daemon=True)
        self.thread.start()
        assert ready.wait(20)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, _, end = Request(scope).url.path.strip("/").partition("-")
        file: BinaryIO = self.path.open("rb") if self._is_file else io.BytesIO(self.data)

        async def count(amount: int) -> None:
            self.counted.append(amount)
            self.closed.append(file.closed)

        await BlobResponse(file, int(start or 0), int(end or SIZE), {}, 200, count)(scope, receive, send)

    def connect(self) -> socket.socket:
        sock = socket.create_connection(self._listener.getsockname(), timeout=20)
        if self._certificate is None:
            return sock
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(sock)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    made: list[Served] = []

    def begin(way: str = "straight", loop: str = "uvloop") -> Served:
        settings = Settings(home=tmp_path / "home", log_level="WARNING")
        if way == "tls":
            certificate = trustme.CA().issue_cert("localhost")
            certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
            certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
            settings = settings.model_copy(update={"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"})
        if way == "from the disk":
            monkeypatch.setattr(zero_copy, "_in_memory", lambda _file, _place: False)
        if way == "a system that does not tell":
            monkeypatch.setattr(zero_copy, "NOWAIT", None)
        served = Served(tmp_path, settings, loop, way != "no file")
        made.append(served)
        really = os.sendfile

        def passing(*values: int) -> int:
            if way == "no sendfile":
                raise OSError("a file system of an odd kind")
            served.passed += (sent := really(*values))
            return sent

        monkeypatch.setattr(os, "sendfile", passing)
        return served

    yield begin
    for served in made:
        served.server.should_exit = True
        served.thread.join(20)


def ask(sock: socket.socket, path: str = "/") -> None:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def heard(sock: socket.socket, pause_s: float = 0.0) -> bytes:
    """The body of one answer, or what came of it."""
    head, body = bytearray(), bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    length = next(int(line.split(b":")[1]) for line in bytes(head).lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length and (more := sock.recv(min(1 << 20, length - len(body)))):
        body += more
        time.sleep(pause_s)
    return bytes(body)


def leave(served: Served, *paths: str) -> None:
    """Ask for these on one connection and go away in the middle of the first; whoever comes then is answered."""
    with served.connect() as sock:
        for path in paths:
            ask(sock, path)
        sock.recv(1000)
        time.sleep(0.3)  # until it is full
    wait_for(lambda: len(served.counted) == 1)
    with served.connect() as sock:
        ask(sock, "/5-10")
        assert heard(sock) == served.data[5:10]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("way", WAYS)
def test_all_of_it_arrives_and_then_the_next_answer(serve: Serve, way: str, loop: str) -> None:
    served = serve(way, loop)
    with served.connect() as sock:
        for path, part in (
            ("/", slice(0, SIZE)),
            ("/7-8", slice(7, 8)),
            (f"/{(1 << 20) - 3}-{(3 << 20) + 5}", slice((1 << 20) - 3, (3 << 20) + 5)),
        ):
            ask(sock, path)
            assert heard(sock) == served.data[part]
    wait_for(lambda: len(served.counted) == 3)
    assert served.counted == [SIZE, 1, (2 << 20) + 8]
    assert all(served.closed)
    straight = way == "straight"
    assert (served.passed > SIZE // 2) == straight, f"{served.passed} bytes went past this process"


@pytest.mark.parametrize("way", WAYS)
def test_two_requests_at_once_on_one_connection_are_answered_in_order(serve: Serve, way: str) -> None:
    served = serve(way)
    with served.connect() as sock:
        ask(sock, f"/0-{9 << 20}")
        ask(sock, "/100-200")
        assert heard(sock, 0.001) == served.data[: 9 << 20]
        assert heard(sock) == served.data[100:200]


def test_who_reads_slowly_keeps_nobody_waiting_and_little_in_memory(serve: Serve) -> None:
    served = serve()
    with served.connect() as slow, served.connect() as fast:
        ask(slow)
        ask(fast)
        assert heard(fast) == served.data
        wait_for(lambda: served.counted == [SIZE])
        (waiting,) = [guest for guest in _guests(served) if guest.unread_since is not None]
        assert waiting.flow is not None
        assert waiting.flow._transport.get_write_buffer_size() <= zero_copy.FILLER
        heard(slow)
    wait_for(lambda: served.counted == [SIZE, SIZE])


@pytest.mark.parametrize("way", WAYS)
def test_of_whom_goes_away_only_what_went_out_is_counted(serve: Serve, way: str, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(way)
    with caplog.at_level(logging.INFO):
        leave(served, "/")
    assert served.counted[0] < SIZE - (1 << 20)
    assert all(served.closed)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("way", WAYS)
def test_who_goes_away_with_two_requests_under_way_is_no_error(serve: Serve, way: str, loop: str, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(way, loop)
    with caplog.at_level(logging.INFO):
        leave(served, "/", "/5-10")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_part_of_a_piece_is_counted_too(serve: Serve) -> None:
    served = serve()
    with served.connect() as sock:
        ask(sock)
        received = len(sock.recv(1000))
        while received < (5 << 20) - 1000:
            received += len(sock.recv(1000))
    wait_for(lambda: len(served.counted) == 1)
    assert received <= served.counted[0] < SIZE
    assert served.counted[0] % files.CHUNK


def test_who_closes_as_soon_as_all_is_there_is_counted_in_full(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    gone, drained = threading.Event(), zero_copy.Way._drained

    async def slowly(way: zero_copy.Way) -> None:
        await drained(way)
        if served.passed:  # it has all of it, and goes before that is noticed
            assert await asyncio.to_thread(gone.wait, 20)
            while not way._transport.is_closing():
                await asyncio.sleep(0.01)
        await drained(way)

    monkeypatch.setattr(zero_copy.Way, "_drained", slowly)
    with served.connect() as sock:
        ask(sock, "/0-5000")
        assert heard(sock) == served.data[:5000]
    gone.set()
    wait_for(lambda: len(served.counted) == 1)
    assert served.counted == [5000]


def test_who_reads_nothing_for_too_long_is_sent_away(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_S", 0.3)
    monkeypatch.setattr(gate, "LOOK_EVERY_S", 0.1)
    served = serve()
    with served.connect() as sock:
        ask(sock)
        wait_for(lambda: len(served.counted) == 1)
        assert served.counted[0] < SIZE
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1 << 20):
                pass


def test_a_file_that_became_shorter_ends_the_connection(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    with served.connect() as sock:
        ask(sock)
        sock.recv(1000)
        os.truncate(served.path, 12 << 20)
        ask(sock, "/5-10")  # never answered
        received = 1000
        with contextlib.suppress(ConnectionResetError):
            while more := sock.recv(1 << 20):
                received += len(more)
        assert received < SIZE


def test_to_stop_does_not_wait_for_who_reads_slowly(serve: Serve) -> None:
    served = serve()
    with served.connect() as sock:
        ask(sock)
        sock.recv(1000)
        served.server.should_exit = True
        served.thread.join(15)
        assert not served.thread.is_alive()
    assert served.closed == [True]


def test_what_only_the_disk_has_is_known() -> None:
    with tempfile.TemporaryFile(dir="/var/tmp") as file:  # on a disk, where that of a test may be none
        file.write(b"x" * (4 << 20))
        file.flush()
        number = file.fileno()

        def dropped() -> bool:
            os.fsync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            return not zero_copy._in_memory(number, (3 << 20) + 5)  # which has the system fetch it

        if not any(dropped() for _ in range(20)):
            pytest.skip("the file system keeps files in memory")
        os.pread(number, 1 << 20, 3 << 20)
        assert zero_copy._in_memory(number, (3 << 20) + 5)
        assert not zero_copy._in_memory(number, 4 << 20), "it ends before"


def _guests(served: Served) -> list[connections.Guest]:
    room = served.server._connections
    return [guest for place in (*room._strangers.values(), *room._known.values()) for guest in place]
