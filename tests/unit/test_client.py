"""What the client and the commands say where no coordinator answers, and that they outlast one that is restarted."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedcybgd.agent.connection import connect, why
from fedcybgd.client.connection import Connection, segment
from fedcybgd.client.errors import (
    CoordinatorAway,
    DirectoryTaken,
    FileUnusable,
    KeyInvalid,
    Refused,
)
from fedcybgd.coordinator import cli
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import NEXT
from fedcybgd.shared.host.addresses import AddressInvalid, address_of, check_way, hint
from tests.support.hostile import Answer, Asked, serving

NOW = "2026-01-02T03:04:05Z"
RUN: dict[str, Any] = {
    "id": "run_" + 16 * "1", "name": "mine", "model": "bert", "state": "completed", "reason": None, "prepared": True, "rounds_done": 3,
    "rounds_total": 3, "created_at": NOW, "started_at": NOW, "ended_at": NOW, "spec": {"name": "mine", "model": "bert"}, "participants": [],
    "notes": [], "readiness": {}, "files": [], "blocks": [], "rounds": [], "current": [], "evaluations": [], "bytes": {"down": 0, "up": 0},
    "pending_jobs": 0, "failed_measurements": 0, "seconds_left": None, "events": [],
}  # fmt: skip
"""As a coordinator answers; written out, for these tests judge the models that would make it"""
EXPORT = "job_" + 16 * "2"
DATA = b"{}"


def says(key: str | None, url: str, *words: str) -> str:
    """The error, as `main` prints it in a line."""
    environment = {"FEDCOORD_URL": url, "FEDCOORD_OPERATOR_KEY": key, "COLUMNS": "200"}
    result = CliRunner().invoke(cli.app, list(words), env=environment)
    assert isinstance(result.exception, FedError), (result.output, result.exc_info)
    assert "\n" not in result.exception.message
    return result.exception.message


def only_with_a_key(asked: Asked) -> Answer:
    if asked.headers.get("authorization") == "Bearer fco_right":
        return Answer.json([])
    return Answer.json({"code": "unauthorized", "message": "this needs the operator's key"}, 401)


@pytest.mark.parametrize("key", [None, "", "  ", "\n"])
def test_without_a_key_it_says_which_variable_is_missing(key: str | None) -> None:
    with serving(only_with_a_key) as server:
        assert "set FEDCOORD_OPERATOR_KEY" in says(key, server.url, "run", "list")


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_authorities_that_cannot_be_read_are_said_in_a_line(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(FileUnusable, match="look at SSL_CERT_FILE"):
        Connection("https://127.0.0.1:1", "fco_x")


def test_a_refusal_is_a_line_with_its_code_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: Answer.json({"code": "not_found", "message": "there is no run 'x'"}, 404)) as server:
        monkeypatch.setenv("FEDCOORD_URL", server.url)
        monkeypatch.setenv("FEDCOORD_OPERATOR_KEY", "fco_right")
        monkeypatch.setattr("sys.argv", ["fedcoord", "run", "status", "x"])
        with pytest.raises(SystemExit, match="1"):
            cli.main()
    assert capsys.readouterr().err == "error: there is no run 'x' [not_found]\n"


@pytest.mark.parametrize("name", ["", "..", "owner/name", "../../agents", "a\nb", "\udcff"])
def test_what_nothing_can_be_called_is_no_part_of_a_path(name: str) -> None:
    with pytest.raises(Refused, match=r"nothing is called .*: a name has letters") as refused:
        segment(name)
    assert (refused.value.status, refused.value.code) == (404, "not_found")


@pytest.mark.parametrize("key", ["fco_ü", "fco_a\nb", "fco_a b", "“fco_x”", "fco_\x00x"])
def test_a_key_that_is_none_is_said_in_a_line(key: str) -> None:
    with pytest.raises(KeyInvalid, match="characters that no key has"):
        Connection("http://127.0.0.1:1", key)


def test_spaces_around_a_key_do_no_harm() -> None:
    with serving(only_with_a_key) as server:
        assert Connection(server.url, " fco_right\n").get("/runs") == []


@pytest.mark.parametrize(
    ("given", "meant"),
    [("http://c:8440/", "http://c:8440"), ("https://c/admin", "https://c"), ("https://c/admin/", "https://c"), ("https://c/fed/v1/runs", "https://c/fed"),
     (" http://[::1]:8440 ", "http://[::1]:8440"), ("http://c/administration", "http://c/administration")],
)  # fmt: skip
def test_an_address_from_a_browser_is_understood(given: str, meant: str) -> None:
    assert address_of(given) == meant


@pytest.mark.parametrize("url", ["localhost:8440", "ftp://c", "http://", "http:///x", "https:// c", "http://c?x=1"])
def test_what_is_no_address_is_said_in_a_line(url: str) -> None:
    assert "begins with http:// or https://" in says("fco_x", url, "status")


@pytest.mark.parametrize(
    "url", ["http://a..b:8440", "http://xn--:8440", f"http://{70 * 'a'}.example", "http://c:99999", "http://c:0", "http://c:x"]
)
def test_a_host_or_port_that_no_network_knows_is_no_traceback(url: str) -> None:
    for look in (address_of, lambda given: check_way(given, True, "")):
        with pytest.raises(AddressInvalid, match="no address of a coordinator: "):
            look(url)
    assert address_of("http://my_host:1/") == "http://my_host:1"
    assert address_of("https://müller.example") == "https://müller.example"
    assert address_of("http://[fe80::1%eth0]:1") == "http://[fe80::1%eth0]:1"


@pytest.mark.parametrize("url", ["http://[::1", "https://c:99999", "https://c:port"])
def test_nor_one_that_only_looks_like_it(url: str) -> None:
    with pytest.raises((AddressInvalid, CoordinatorAway)):
        Connection(url, "fco_x").get("/runs")


def test_https_where_http_is_spoken_and_the_other_way_round() -> None:
    with serving(only_with_a_key) as server:
        assert "try http://" in says("fco_x", server.url.replace("http://", "https://"), "status")
    assert "try https://" in hint("http://c", Exception("Server disconnected without sending a response."))
    assert "SSL_CERT_FILE=" in hint("https://c", Exception("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"))
    assert hint("http://c", Exception("Connection refused")) == ""


def test_a_page_instead_of_an_answer_is_no_traceback() -> None:
    with serving(lambda _: Answer.page(200)) as server:
        assert "is it one?" in says("fco_x", server.url, "status")
    with serving(lambda _: Answer.page(404)) as server:
        assert "is it a coordinator?" in says("fco_x", server.url, "status")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, gzip.compress(b" " * 100_000_000, 1), {"Content-Encoding": "gzip"}), "has more than"),
        (Answer(200, stream=iter([b" " * 1_000_000] * 100)), "has more than"),
        (Answer(409, gzip.compress(b" " * 100_000_000, 1), {"Content-Encoding": "gzip"}), "has more than"),
        (Answer(200, b"[]", {"Content-Encoding": "br"}), "which nobody asked for"),
        (Answer(200, b"[" * 200_000), "is it one?"),
        (Answer(200, b"[]", {NEXT: "x"}), "the same page"),
    ],
)
def test_an_answer_without_end_is_none(answer: Answer, said: str) -> None:
    asked = iter([answer] * 3)
    with serving(lambda _: next(asked, Answer(200, b"[]"))) as server:
        assert said in says("fco_x", server.url, "run", "list")


# ---- a coordinator that is restarted ------------------------------------------------------------------------------------


class Restarted:
    """Answers GET with a count, is away for a while, and is back at the same port."""

    def __init__(self) -> None:
        self.count = 0
        self._start(0)

    def _start(self, port: int) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.count += 1
                body = json.dumps({"count": outer.count}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def again_after(self, seconds: float) -> None:
        self.stop()
        threading.Timer(seconds, lambda: self._start(self.port)).start()


@pytest.fixture
def restarted() -> Iterator[Restarted]:
    server = Restarted()
    yield server
    server.stop()


def test_waiting_outlasts_a_restart_and_says_so_once(restarted: Restarted) -> None:
    operator = Connection(f"http://127.0.0.1:{restarted.port}", "fco_x")
    notices: list[str] = []
    operator.notice = notices.append
    assert operator.get("/x")["count"] == 1
    restarted.again_after(0.6)
    began = time.monotonic()
    assert operator.patiently(lambda: operator.get("/x"), every=0.1)["count"] == 2
    assert time.monotonic() - began > 0.4
    assert len(notices) == 1
    assert "waiting for it" in notices[0]


def test_an_address_where_nobody_ever_answered_is_not_waited_for() -> None:
    operator = Connection("http://127.0.0.1:1", "fco_x")
    with pytest.raises(CoordinatorAway, match="no coordinator answers"):
        operator.wait(lambda: operator.get("/x"), lambda _: True)


@pytest.mark.parametrize("page", [502, 503, 504, 429, 200])
def test_what_a_proxy_says_meanwhile_is_waited_out(page: int) -> None:
    answers = iter([Answer.json({"n": 1}), Answer.page(page), Answer.page(page), Answer.json({"n": 2})])
    with serving(lambda _: next(answers)) as server:
        operator = Connection(server.url, "fco_x")
        operator.notice = lambda _: None
        assert operator.get("/x") == {"n": 1}
        assert operator.patiently(lambda: operator.get("/x"), every=0.01) == {"n": 2}


def test_what_a_coordinator_refuses_is_not_waited_for() -> None:
    with serving(lambda _: Answer.json({"code": "not_found", "message": "there is no run"}, 404)) as server:
        operator = Connection(server.url, "fco_x")
        operator._answered = True
        with pytest.raises(Refused, match="there is no run"):
            operator.patiently(lambda: operator.get("/x"))


# ---- where an export goes ----------------------------------------------------------------------------------------------


def exporting(run: dict[str, Any]) -> Any:
    file = {"name": "config.json", "digest": digest_of(DATA), "size": len(DATA)}

    def answer(asked: Asked) -> Answer:
        if asked.method == "POST":
            return Answer.json({"export_id": EXPORT})
        if asked.path.endswith(f"/exports/{EXPORT}"):
            return Answer.json({"export_id": EXPORT, "ready": True, "after_rounds": 3, "files": [file]})
        if "/provenance" in asked.path:
            return Answer.json({"code": "not_found", "message": "there is no such route"}, 404)
        return Answer(200, DATA) if asked.path.endswith("config.json") else Answer.json(run)

    return serving(answer)


def export(run: dict[str, Any], target: Path, *more: str) -> Any:
    with exporting(run) as server:
        environment = {"FEDCOORD_URL": server.url, "FEDCOORD_OPERATOR_KEY": "fco_x", "COLUMNS": "200"}
        return CliRunner().invoke(cli.app, ["run", "export", str(run["name"]), str(target), *more], env=environment)


OTHER = {**RUN, "id": "run_" + 16 * "3", "name": "other"}


def test_an_export_says_whose_it_is_and_may_be_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        assert export(RUN, tmp_path / "out").exit_code == 0
    card = json.loads((tmp_path / "out/fedcybgd.json").read_text())
    assert card == {"run": "mine", "run_id": RUN["id"], "model": "bert", "after_rounds": 3, "files": {"config.json": digest_of(DATA)}}


def test_an_export_does_not_write_over_another_runs(tmp_path: Path) -> None:
    assert export(RUN, tmp_path / "out").exit_code == 0
    for other in (OTHER, {**OTHER, "name": "mine"}):
        refused = export(other, tmp_path / "out")
        assert isinstance(refused.exception, DirectoryTaken)
        assert "holds the model of run mine; choose another directory, or give --force" in refused.exception.message
    assert json.loads((tmp_path / "out/fedcybgd.json").read_text())["run"] == "mine"
    assert export(OTHER, tmp_path / "out", "--force").exit_code == 0
    assert json.loads((tmp_path / "out/fedcybgd.json").read_text())["run"] == "other"


@pytest.mark.parametrize("left", ["notes.txt", ".git", "fedcybgd.json"])
def test_nor_over_what_somebody_else_left_there(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("[1]")
    refused = export(RUN, tmp_path)
    assert isinstance(refused.exception, DirectoryTaken)
    assert "is not empty" in refused.exception.message
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {left: "[1]"}


def test_a_directory_that_cannot_be_made_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = export(RUN, tmp_path / "file" / "out")
    assert isinstance(refused.exception, FileUnusable), refused.exc_info
    assert "choose another directory" in refused.exception.message


def test_the_card_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/fedcybgd.json").symlink_to(victim)
    assert isinstance(export(RUN, tmp_path / "out", "--force").exception, FedError)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("command", [("run", "create"), ("plan",)])
@pytest.mark.parametrize("content", ["# für Köln\nname: a".encode("latin-1"), "name: a".encode("utf-16"), bytes(range(256)), None])
def test_a_run_file_that_is_no_text_is_said_in_a_line(tmp_path: Path, command: tuple[str, ...], content: bytes | None) -> None:
    file = tmp_path / "run.yaml"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    result = CliRunner().invoke(
        cli.app, [*command, str(file)], env={"FEDCOORD_URL": "http://127.0.0.1:1", "FEDCOORD_OPERATOR_KEY": "fco_x"}
    )
    assert result.exit_code != 0
    assert not isinstance(result.exception, (OSError, ValueError)), result.exception


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_no_proxy_of_the_environment_leads_back_to_this_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with serving(lambda _: Answer.json({"found": True})) as server:
        url = server.url.replace("127.0.0.1", name)
        assert Connection(url, patience_s=0).get("/health") == {"found": True}
        assert connect(url, "").get("/health").json() == {"found": True}
    assert "through the proxy" not in why(url, OSError("refused"))
    assert "through the proxy http://127.0.0.1:9 " in why("http://10.1.2.3:8440", OSError("refused"))
