"""The page of an agent: what it says, that it tells no row, and that nobody else reads it or changes anything by it."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from fedcybgd.agent import cli
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.page import PagePort
from fedcybgd.agent.readiness import Verdict
from fedcybgd.agent.settings import Home
from fedcybgd.agent.showing import Showing
from fedcybgd.shared.contract.assignments import Progress
from tests.unit.test_agent_status import KEYS, ROW, URL, home, visit
from tests.unit.test_residuals import assignment

__all__ = ["home"]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def shows(home: Home) -> Showing:
    unfit = Verdict(run_id="run_1", run=HOSTILE, reason="data_invalid", message=f"row 7 says {ROW}")
    return Showing(home, Client(URL), lambda: "all walls stand", lambda: [unfit])


@pytest.fixture
def page(home: Home) -> Iterator[PagePort]:
    port = PagePort(0, home, KEYS)
    yield port
    port.close()


def asked(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    with httpx.Client(verify=False, trust_env=False) as http:
        return http.request(method, url, headers=headers)


def test_it_says_what_the_agent_does_and_what_has_left(page: PagePort, home: Home, shows: Showing) -> None:
    assert "It has not said anything yet" in asked(page.url).text
    visit(shows, True, 2_500_000, 7_000_000, run=HOSTILE)
    shows.begins(0)
    work = assignment(1).model_copy(update={"run_name": HOSTILE})
    shows.progress(work, Progress(phase="training", step=3, steps=8, loss=0.25, tokens_per_s=1234), 2)
    home.cache.mkdir()
    (home.cache / "shard").write_bytes(b"x" * 30_000_000)
    shows.note(f"data_invalid: row 7: {ROW}", "data_invalid: the agent's own log says more")
    shows.progress(work, Progress(phase="training", step=8, steps=8, loss=0.25, tokens_per_s=1234), 2)
    text = asked(page.url).text
    for word in (
        "berlin", "agt_0123456789abcdef", "step 8 of 8, loss 0.250, 1,234 tokens/s", "spoken to again by", "cache: 30.0 MB of 20.0 GB",
        "all walls stand", "data_invalid: the agent&#x27;s own log says more", "1 visit done", '<td class="n">2.5</td><td class="n">7.0</td>',
    ):  # fmt: skip
        assert word in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3, "the visit, the refusal and what has left"
    whole = json.loads(asked(page.url + "status.json").text)
    assert (whole["agent"], whole["sent"][0]["run"], whole["status"]["step"]) == ("berlin", HOSTILE, 8)


def test_it_tells_no_row_and_no_key(page: PagePort, home: Home, shows: Showing) -> None:
    """Whoever has an account on this machine can read it; only the owner reads the files."""
    shows.note(f"data_invalid: row 7: {ROW}", "data_invalid")
    shows.state("waiting for work", 25)
    assert ROW in home.status.read_text()
    for path in ("", "status.json"):
        text = asked(page.url + path).text
        assert "data_invalid" in text
        assert [word for word in ("fever", KEYS.key, KEYS.private_key) if word in text] == []


def test_nothing_of_it_is_run_or_loaded_from_anywhere(page: PagePort, shows: Showing) -> None:
    shows.state("waiting for work", 25)
    answer = asked(page.url)
    rules = answer.headers["Content-Security-Policy"]
    assert rules.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in rules
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Python" not in answer.headers["Server"]
    assert re.findall(r"<(?:script|link|img|iframe|form|a|button|input)\b|\bsrc=|\bhref=|@import|url\(", answer.text) == []


def test_only_this_machine_is_answered_by_its_name_alone(page: PagePort) -> None:
    assert page.url.startswith("http://127.0.0.1:")
    for path in ("", "status.json"):
        assert asked(page.url + path, Host="localhost:1").status_code == 200
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example:80", "[::1].evil.example:80", ""):
            assert asked(page.url + path, Host=host).status_code == 404, host
    for path in ("credentials.json", "status.json/", "../credentials.json", "?x=1", "%2e%2e/agent.toml"):
        assert asked(page.url + path).status_code == 404, path


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed_by_it(page: PagePort, home: Home, method: str) -> None:
    before = {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()}
    answer = asked(page.url, method)
    assert answer.status_code == 501
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()} == before


def test_a_port_that_is_taken_is_said_before_any_work_is_asked_for(home: Home, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,0\n")
    home.config.write_text(f'coordinator = "{URL}"\n[data]\npath = "{tmp_path / "rows.csv"}"\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["run", "--home", str(home.path), "--page", str(taken.getsockname()[1])]
        ended = CliRunner().invoke(cli.app, words)
    assert isinstance(ended.exception, ConfigError), (ended.output, ended.exc_info)
    assert "choose another --page" in ended.exception.message
