"""What integration tests share: models that are added once to each coordinator, and coordinators of a test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATABASES
from tests.support.live import LiveCoordinator
from tests.support.postgres import PostgresServer
from tests.support.visits import Hand


@pytest.fixture(scope="session")
def model(live: LiveCoordinator, bert: Path) -> str:
    """The name of a BERT with two layers, ready to be used by runs."""
    live.add_model("shared-bert", bert)
    return "shared-bert"


@pytest.fixture
def hand(live: LiveCoordinator) -> Hand:
    return Hand(live)


@pytest.fixture
def other(live: LiveCoordinator) -> Hand:
    return Hand(live)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with the schema or, on SQLite, of none: a coordinator brings its own. `tests/migrations` begins with nothing."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.database_with_schema()
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def coordinators(tmp_path: Path, database_url: str) -> Iterator[Callable[..., LiveCoordinator]]:
    """Starts coordinators on one home and one database of this test; one after another, as a restart does."""
    started: list[LiveCoordinator] = []

    def start(**settings: Any) -> LiveCoordinator:
        started.append(LiveCoordinator(tmp_path / "home", database_url, **settings))
        return started[-1]

    yield start
    for coordinator in started:
        coordinator.stop()


@pytest.fixture
def nothing_under_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file that has arrived for one upload has arrived for all: no test is to have those of another."""
    yield
    if "live" in request.fixturenames:
        live: LiveCoordinator = request.getfixturevalue("live")
        for one in live.operator.every("/model-uploads"):
            live.operator.send("POST", f"/model-uploads/{one['id']}/delete")  # type: ignore[index]
