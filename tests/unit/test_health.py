"""What health checks ask: of a coordinator by its settings, of an agent by its own files."""

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fedcybgd.agent import credentials, status
from fedcybgd.agent.client import Client
from fedcybgd.agent.settings import Home
from fedcybgd.agent.showing import Showing
from fedcybgd.client.errors import CoordinatorAway
from fedcybgd.coordinator.commands.health import asked
from fedcybgd.coordinator.settings import Settings
from tests.support.hostile import Answer, Asked, serving
from tests.unit.test_agent_status import KEYS, URL


def test_a_coordinator_is_asked_where_its_settings_say_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Asked] = []

    def answer(request: Asked) -> Answer:
        heard.append(request)
        return Answer.json({"status": "ok", "version": "0.1.0", "full_disks": []})

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # of the machine, and nothing to do with this
    with serving(answer) as server:
        settings = Settings(host="0.0.0.0", port=urlsplit(server.url).port, hosts="coordinator.example,other.example")
        assert asked(settings).status == "ok"
    assert [(request.path, request.headers["host"]) for request in heard] == [("/v1/health", "coordinator.example")]
    with pytest.raises(CoordinatorAway):
        asked(settings)


@pytest.mark.parametrize("answer", [Answer.json({"code": "host_unknown", "message": "no", "detail": {}}, 421), Answer.json({"status": 1})])
def test_another_answer_is_none(answer: Answer) -> None:
    with serving(lambda _: answer) as server, pytest.raises(CoordinatorAway):
        asked(Settings(port=urlsplit(server.url).port))


def test_an_agent_is_well_while_it_gives_signs(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    credentials.save(home, KEYS)

    def well() -> bool:
        return status.gathered(home, KEYS).well

    shows = Showing(home, Client(URL), lambda: None, list)
    shows.state("waiting for work")
    assert not well(), "it has done nothing yet"
    shows.alive()
    assert well()
    long_ago = time.time() - status.HANGS_AFTER_S - 1
    os.utime(home.sign, (long_ago, long_ago))
    assert not well()
    home.sign.touch()
    shows.state("stopped")
    assert not well()
