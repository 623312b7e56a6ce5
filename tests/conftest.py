"""Fixtures that several kinds of tests use."""

import functools
import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

gc.disable()  # until all tests are collected: what is imported stays
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from fedcybgd.coordinator.db.base import Database  # noqa: E402
from tests.support import migrated, models  # noqa: E402
from tests.support.live import LiveCoordinator  # noqa: E402
from tests.support.postgres import PostgresServer, find_program  # noqa: E402
from tests.workers import Workers  # noqa: E402

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
FOLDERS = ["faults", "e2e", "browser", "integration", "migrations", "contract", "unit"]
"""Long tests first: what is left at the end is short, and no worker waits long for another."""
LOOKED_THROUGH = 20_000
"""Objects that a collection of garbage may look through: more take as long as a test."""
shared: list[LiveCoordinator] = []
"""What the fixture `live` has given, while it lasts."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--both-databases", action="store_true", help="every test on SQLite and on PostgreSQL, also where neither decides")
    parser.addoption(
        "--workers", type=int, default=0, metavar="N", help="processes that do tests at once, forked from this one; 0: this one"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("workers"):
        config.pluginmanager.register(Workers(config.getoption("workers")))


@pytest.hookimpl(trylast=True)  # after pytest has put together what shares a coordinator
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everything = config.getoption("both_databases") or any("postgresql" in argument for argument in config.args)
    left_out = [] if everything else list(_decided_by_no_database(items))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    kept = set(items) - set(left_out)
    place = {name: number for number, name in enumerate(FOLDERS)}
    items[:] = sorted((i for i in items if i in kept), key=lambda item: place.get(item.path.parent.name, -1))


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.items and session.config.getoption("workers") and not session.config.option.collectonly:
        from fedcybgd.shared.models.assembly import import_model_code

        import_model_code()  # what every worker would make for itself: two seconds each
        migrated.template()
    gc.freeze()
    gc.enable()


def _decided_by_no_database(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Tests on PostgreSQL that say nothing which the same test on SQLite does not say; `make test-all` has them."""
    for item in items:
        decides = item.get_closest_marker("database_decides") is not None and item.get_closest_marker("one_database") is None
        if item.get_closest_marker("postgresql") is not None and not decides:
            yield item


@pytest.fixture(autouse=True)
def little_garbage() -> None:
    """An agent collects garbage after each visit, and there what was imported, also since the last test, needs no look each time."""
    if len(gc.get_objects()) > LOOKED_THROUGH:
        gc.collect()
        gc.freeze()


@functools.wraps(os.fsync)
def _on_the_disk(descriptor: int) -> None:
    os.fstat(descriptor)


@pytest.fixture(autouse=True, scope="session")
def no_power_is_cut() -> Iterator[None]:
    """What only a power cut would show waits for no disk in this process: that it is asked for is tested where it is; children do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", _on_the_disk)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server. Where its programs are missing the test is skipped; in CI they must be there."""
    if find_program("initdb") is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL's initdb was not found, and CI must not skip it: apt-get install postgresql")
        pytest.skip("PostgreSQL's initdb was not found: install postgresql to run this test")
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.new_database()
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of this test with the schema and no rows, on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres").database_with_schema()
    else:
        migrated.begin_with_schema(url := f"sqlite:///{tmp_path / 'test.db'}")
    made = Database(url)
    yield made
    made.close()


@pytest.fixture(scope="session", params=DATABASES)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCoordinator]:
    """A coordinator for many tests; names of agents, models and runs must be a test's own."""
    url = request.getfixturevalue("postgres").database_with_schema() if request.param == "postgresql" else None
    coordinator = LiveCoordinator(tmp_path_factory.mktemp("coordinator"), url)
    shared.append(coordinator)
    yield coordinator
    shared.remove(coordinator)
    coordinator.stop()


@pytest.fixture(autouse=True)
def nothing_left_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no run for `live` to look after, and beside tests without one it has next to nothing to do: they share a process."""
    used = "live" in request.fixturenames
    for coordinator in shared:
        coordinator.look_every(used)
    live = request.getfixturevalue("live") if used else None
    with live.tidied() if live in shared else nullcontext():
        yield


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_gpt2(tmp_path_factory.mktemp("gpt2"))
