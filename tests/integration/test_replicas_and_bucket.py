"""Coordinators on one database and one bucket, and nothing else in common: no directory, only the same secrets."""

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save
from sqlalchemy import select

from fedcybgd.client.connection import Connection
from fedcybgd.coordinator.common import STARTS_WITHIN, SecretDiffers
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.models import SigningKey
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.services.records import replicas
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.webhook import webhook_settings
from fedcybgd.shared.contract.digests import digest_of
from tests.support import buckets
from tests.support.live import LiveCoordinator
from tests.support.postgres import PostgresServer
from tests.support.uploading import asked, files_of, put
from tests.support.visits import Hand, at, settled, start_run

pytestmark = [pytest.mark.database_decides, pytest.mark.postgresql]
SECRET = "signing.secret"
Start = Callable[[str], LiveCoordinator]


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.database_with_schema()


@pytest.fixture(params=["directory", "s3"] if buckets.S3 else ["directory"])
def start(request: pytest.FixtureRequest, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a coordinator with a home of its own, in which it has a copy of the first one's secret."""
    storage, started = buckets.url(request.param, tmp_path, monkeypatch), list[LiveCoordinator]()

    def start(name: str) -> LiveCoordinator:
        (tmp_path / name).mkdir()
        if started:
            shutil.copy(started[0].settings.signing_secret, tmp_path / name / SECRET)
        started.append(live := LiveCoordinator(tmp_path / name, url, storage=storage))
        for one in started:  # each makes the operator's key anew
            one.operator_key, one.operator = live.operator_key, Connection(one.url, live.operator_key)
        return live

    yield start
    for live in started:
        assert not live.settings.uploads.exists()
        live.stop()


def test_a_delta_goes_on_at_any_of_them_where_it_was_cut(start: Start, bert: Path) -> None:
    one, other = start("one"), start("other")
    one.add_model("bert", bert)
    hand = Hand(one)
    run = start_run(one, "bert", [hand])
    assignment = hand.take(run)
    data = save(hand.delta(assignment))
    digest, third = digest_of(data), len(data) // 3
    assert hand.put(assignment, data[:third], digest=digest).json() == {"offset": third, "complete": False}
    at(hand, other)
    assert hand.offset(assignment, digest) == {"offset": third, "complete": False}
    assert hand.put(assignment, data[third : 2 * third], offset=third, digest=digest).json()["offset"] == 2 * third
    at(hand, one)
    assert hand.put(assignment, data[2 * third :], offset=2 * third, digest=digest).json()["offset"] == len(data)
    assert at(hand, other).submit(assignment, digest).status_code == 202
    assert settled(one, run)["rounds_done"] == 1
    assert set(other.app.state.uploads.keys()) == set()


def test_a_model_arrives_through_all_of_them(start: Start, bert: Path) -> None:
    one, other = start("one"), start("other")
    files = files_of(bert)
    upload = str(one.operator.post("/model-uploads", asked("sent", files))["id"])
    for number, data in enumerate(files.values()):
        half = len(data) // 2
        first, second = (one, other) if number % 2 else (other, one)
        assert put(first, upload, data[:half], 0, digest_of(data)).json() == {"offset": half, "complete": False}
        assert put(second, upload, data[half:], half, digest_of(data)).json() == {"offset": len(data), "complete": True}
    name = one.operator.post(f"/model-uploads/{upload}/add")["name"]
    view: Any = one.operator.wait(lambda: other.operator.get(f"/models/{name}"), lambda m: m["state"] != "adding", every=0.05, limit=60)
    assert view["state"] == "ready", view["reason"]


# ---- the secrets


class Homes:
    """Two of them, of which the first is of one that lives."""

    def __init__(self, url: str, tmp_path: Path, **settings: Any) -> None:
        self._given = {"database_url": url, "storage": f"file://{tmp_path / 'bucket'}", **settings}
        self.one, self.other = (Settings(home=tmp_path / name, **self._given) for name in ("one", "other"))
        self.started(self.one)
        self.database = Database(url)
        self.lives()

    def lives(self) -> None:
        with self.database.transaction() as session:
            self.replica = replicas.enter(session, "hom_one", utcnow())

    def dies(self) -> None:
        with self.database.transaction() as session:
            replicas.leave(session, self.replica)

    def passed(self) -> None:
        """The key was made long ago."""
        with self.database.transaction() as session:
            for key in session.scalars(select(SigningKey)):
                key.created_at -= STARTS_WITHIN

    def started(self, settings: Settings) -> None:
        """As far as the part in which it serves; twice, for that looks once more."""
        prepare_home(settings)
        webhook_settings(settings)
        prepare_home(settings)

    def copied(self, name: str) -> None:
        shutil.copy(self.one.common / name, self.other.common / name)


@pytest.fixture
def homes(request: pytest.FixtureRequest, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Homes]:
    monkeypatch.setattr(replicas, "ALIVE", timedelta(hours=1))  # the test is over by then, however slow it is
    homes = Homes(url, tmp_path, **getattr(request, "param", {}))
    yield homes
    homes.database.close()


def test_one_without_the_secret_of_those_that_live_does_not_start_beside_them(homes: Homes) -> None:
    with pytest.raises(SecretDiffers, match=SECRET):
        homes.started(homes.other)
    (homes.other.home / SECRET).write_text(64 * "0")
    with pytest.raises(SecretDiffers, match=SECRET):
        homes.started(homes.other)
    homes.copied(SECRET)
    homes.started(homes.other)


def test_directories_that_are_called_common_and_are_two_are_noticed(homes: Homes, tmp_path: Path) -> None:
    apart = homes.other.model_copy(update={"shared": tmp_path / "mine"})
    with pytest.raises(SecretDiffers, match="mine"):
        homes.started(apart)
    homes.started(homes.other.model_copy(update={"shared": homes.one.home}))


def test_of_two_that_start_at_once_the_one_without_the_secret_does_not(homes: Homes) -> None:
    homes.dies()  # the first has made the key, and is not yet so far that it says that it lives
    with pytest.raises(SecretDiffers, match=SECRET):
        homes.started(homes.other)
    homes.copied(SECRET)
    homes.started(homes.other)


def test_where_nobody_else_lives_it_starts(homes: Homes) -> None:
    homes.dies()
    homes.passed()
    homes.started(homes.other)


@pytest.mark.parametrize("homes", [{"webhook_url": "https://receiver.example/"}], indirect=True)
def test_a_webhook_has_one_secret(homes: Homes) -> None:
    homes.other.home.mkdir()
    homes.copied(SECRET)
    with pytest.raises(SecretDiffers, match=r"webhook\.secret"):
        homes.started(homes.other)
    webhook_settings(homes.other)  # it makes one
    with pytest.raises(SecretDiffers, match=r"webhook\.secret"):
        homes.started(homes.other)
    homes.copied("webhook.secret")
    homes.started(homes.other)
    (homes.other.home / "webhook.secret").unlink()
    homes.dies()
    homes.passed()
    homes.started(homes.other)
    homes.lives()
    with pytest.raises(SecretDiffers):
        homes.started(homes.one)
