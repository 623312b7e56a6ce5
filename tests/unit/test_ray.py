"""A Ray cluster as engine, without Ray: addresses, refusals, what jobs ask for, what nodes say, and how waiting for room is told from hanging."""

import logging
import subprocess
import sys
import threading
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.domain.jobs.kinds import JobKind
from fedcybgd.coordinator.domain.jobs.needs import MOST_CORES, OF_A_PROCESS, TIMES, Needs, Node, has_place, needs_of, within
from fedcybgd.coordinator.domain.jobs.payloads import EncodePayload, ImportPayload
from fedcybgd.coordinator.engine.model_directory import ModelRefused
from fedcybgd.coordinator.jobs import ray_cluster, ray_engine, ray_node
from fedcybgd.coordinator.jobs.engine import EngineAway
from fedcybgd.coordinator.jobs.ray_cluster import RayCluster, RayNodeUnfit, RayUnusable, address_of, result_of
from fedcybgd.coordinator.jobs.ray_engine import RayEngine
from fedcybgd.coordinator.jobs.ray_node import Answer, Plain, Request
from fedcybgd.coordinator.parts import engine_of
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobMissing, Place, mark, open_place
from tests.support.played import IMPORTED

IMPORT = ImportPayload(source="/nowhere")


@pytest.mark.parametrize("url", ["ray://127.0.0.1:10001", "ray://head.example:1", "ray://[::1]:10001"])
def test_addresses(url: str) -> None:
    assert address_of(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ray",
        "ray://",
        "ray://host",
        "ray://host:0",
        "ray://host:99999",
        "ray://auto",
        "ray://a:1/b",
        "ray://key@host:10001",
        "http://host:10001",
    ],
)
def test_odd_addresses_are_refused_before_ray_is_looked_for(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayUnusable, match=r"ray://HOST:10001"):
        engine_of(Settings(home=tmp_path, engine=url))


def test_without_the_package_a_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("FEDCOORD_ENGINE", "ray://127.0.0.1:10001")
    refused = CliRunner().invoke(app, ["serve", "--home", str(tmp_path), "--port", "0"]).exception
    assert isinstance(refused, RayUnusable)
    assert "pip install '.[ray]'" in str(refused)
    engine_of(Settings(home=tmp_path, lanes="none"))  # it does no jobs


def test_a_first_start_that_is_refused_leaves_the_first_key_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayUnusable):
        prepare_home(Settings(home=tmp_path, engine="ray://127.0.0.1:10001"))
    assert not Settings(home=tmp_path).first_key.exists()
    assert prepare_home(settings := Settings(home=tmp_path)) == settings.first_key.read_text().strip()


def test_ray_is_not_imported_for_engines_of_this_machine() -> None:
    program = "import sys; from fedcybgd.coordinator import elsewhere, serve; assert not {'ray', 'grpc'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_which_card_it_is_ray_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "imported", object)
    with pytest.raises(RayUnusable, match="say cuda"):
        RayCluster("ray://host:10001", Place(tmp_path), 1, "cuda:1")


class OtherVersion:
    """Ray, whose client finds a cluster of another version."""

    def __init__(self) -> None:
        self.util = SimpleNamespace(client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: False)))

    def shutdown(self) -> None: ...
    def init(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.1\n    Python: 3.9.1\nThis process on Ray Client:\n    Ray: 2.60.0\n"
        )


def test_a_cluster_of_another_version_is_refused_with_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "imported", OtherVersion)
    with pytest.raises(RayUnusable, match=r"Version mismatch: .* Ray: 2\.1 Python: 3\.9\.1 .* Ray: 2\.60\.0"):
        RayCluster("ray://host:10001", Place(tmp_path), 1, "cpu").check()


def test_an_address_where_object_storage_is_has_a_mark_too(tmp_path: Path) -> None:
    bucket = Place(tmp_path / "cache", f"file://{tmp_path / 'bucket'}")
    assert mark.seen(bucket) is None
    left = mark.leave(bucket)
    assert (mark.leave(bucket), mark.seen(bucket), len(left)) == (left, left, 32)


class TestNeeds:
    def test_by_kind(self) -> None:
        assert needs_of("import", IMPORT, 2, card=True) == Needs(2, OF_A_PROCESS)
        assert needs_of("apply", IMPORT, 2, card=True) == Needs(MOST_CORES, OF_A_PROCESS)
        measured = {kind for kind in JobKind if needs_of(kind, IMPORT, 1, card=True).card}
        assert measured == {"evaluate", "loss", "fidelity", "influence", "importance"}
        assert not any(needs_of(kind, IMPORT, 1, card=False).card for kind in JobKind)

    def test_memory_by_the_largest_file(self) -> None:
        ref = {"block": "layers.0", "version": 0, "codec": "exact", "digest": "0" * 64, "size": 5}
        wanted = [ref, ref | {"packed": {"digest": "0" * 64, "size": 7_000}}]
        config = {"name": "config.json", "digest": "0" * 64, "size": 900}
        payload = EncodePayload.model_validate({"config": config, "task": "text-classification", "wanted": wanted})
        assert needs_of("encode", payload, 1, False).memory == OF_A_PROCESS + TIMES * 7_000

    @pytest.mark.parametrize(
        ("nodes", "expected"),
        [
            ([], None),
            ([Node("head", 0, 100, 4)], None),
            ([Node("a", 2, 50)], Needs(2, 50)),
            ([Node("a", 2, 500), Node("b", 16, 80)], Needs(8, 80)),
            ([Node("a", 16, 500), Node("b", 4, 90, cards=1)], Needs(4, 90, card=True)),
            ([Node("a", 16, 500), Node("b", 0, 90, cards=1)], Needs(8, 100)),
        ],
    )
    def test_no_more_is_asked_than_some_machine_has(self, nodes: list[Node], expected: Needs | None) -> None:
        found = within(Needs(8, 100, card=True), nodes)
        assert found == expected
        assert found is None or has_place(found, nodes)
        assert not has_place(Needs(64, 1), nodes)


# ---- on a node


class Told:
    """In place of the cluster's memory of what nodes tell."""

    def __init__(self) -> None:
        self.over = False

    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None:
        self.over = True


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_node, "told", lambda _: Told())


def asked(folder: Path, seen: str, kind: str | None = None) -> Plain:
    return Request(Place(folder), seen, kind, IMPORT.model_dump_json()).plain


def answered(answer: Answer) -> Future[Answer]:
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


def test_a_node_without_the_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    function = ray_node.shipped()
    monkeypatch.setitem(sys.modules, ray_node.__name__, None)
    with pytest.raises(RayNodeUnfit, match="cannot import the package fedcybgd"):
        result_of(answered(function("0.1.0", "token", {})))


def test_a_node_with_another_version_says_so_before_it_reads_anything() -> None:
    with pytest.raises(RayNodeUnfit, match="and the coordinator is of 99"):
        result_of(answered(ray_node.do("99", "token", {})))


def test_a_node_that_does_not_see_the_blobs_says_so_and_makes_nothing(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    open_place(Place(here))
    seen = mark.leave(Place(here))
    assert (mark.leave(Place(here)), mark.seen(Place(here))) == (seen, seen), "it is made once"
    own = ray_node.version(ray_node.PACKAGE)
    assert ray_node.do(own, "token", asked(here, seen)) == (ray_node.DONE, None)
    with pytest.raises(RayNodeUnfit, match=r"does not see the coordinator's blobs in .*there"):
        result_of(answered(ray_node.do(own, "token", asked(there, seen))))
    assert not there.exists()
    open_place(Place(there))
    mark.leave(Place(there))
    with pytest.raises(RayNodeUnfit, match="does not see"):
        result_of(answered(ray_node.do(own, "token", asked(there, seen))))


def test_results_and_errors_cross_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedcybgd.coordinator.engine.entries as entries

    open_place(Place(tmp_path))
    own, seen = ray_node.version(ray_node.PACKAGE), mark.leave(Place(tmp_path))
    request = asked(tmp_path, seen, "import")
    monkeypatch.setattr(entries, "warm_up", lambda *_: None)
    with pytest.raises(ModelRefused):
        result_of(answered(ray_node.do(own, "token", request)))

    class Local(Exception):
        """Nobody else knows it."""

    def play(error: Exception | None) -> None:
        def run(*_: Any) -> BaseModel:
            if error:
                raise error
            return IMPORTED

        monkeypatch.setattr(entries, "run", run)

    play(BlobMissing("no blob abc", digest="abc"))
    with pytest.raises(BlobMissing) as missing:
        result_of(answered(ray_node.do(own, "token", request)))
    assert missing.value.detail == {"digest": "abc"}
    play(Local("odd"))
    with pytest.raises(RuntimeError, match="Local: odd"):
        result_of(answered(ray_node.do(own, "token", request)))
    play(None)
    assert result_of(answered(ray_node.do(own, "token", request))) == IMPORTED


# ---- the engine


class Waiting:
    """A task that waits for room, then runs, then is told what came of it."""

    def __init__(self) -> None:
        self.answer: Future[Answer] = Future()
        self.now: float | Exception | None = None
        self.ended = threading.Event()
        self.fits = True

    def used(self) -> float | None:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def has_place(self) -> bool:
        return self.fits

    def end(self) -> None:
        self.ended.set()

    def begin(self, kind: str, payload: BaseModel) -> "Waiting":
        return self


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    monkeypatch.setattr(ray_engine, "LOOK_EVERY_S", 0.02)
    return Waiting()


def submitted(engine: RayEngine) -> Future[Future[BaseModel]]:
    """The job's future, in a future: it is there once the job has begun."""
    begun: Future[Future[BaseModel]] = Future()
    threading.Thread(target=lambda: begun.set_result(engine.submit("import", IMPORT)), daemon=True).start()
    return begun


def test_what_waits_for_room_has_not_begun_and_is_told_of(task: Waiting, caplog: pytest.LogCaptureFixture) -> None:
    engine = RayEngine(task)
    with caplog.at_level(logging.WARNING):
        begun = submitted(engine)
        with pytest.raises(TimeoutError):
            begun.result(0.3)
    assert "a job (import) waits for room on the Ray cluster" in caplog.text
    task.now = 1.5
    result = begun.result(5)
    assert engine.cpu_s() == 1.5
    task.answer.set_result((ray_node.DONE, IMPORTED))
    assert result.result(5) == IMPORTED
    assert task.ended.wait(5), "what it told is forgotten"


@pytest.mark.parametrize("began", [True, False])
def test_a_job_is_cancelled_when_the_engine_is_ended(task: Waiting, began: bool) -> None:
    engine = RayEngine(task)
    task.now = 0.0 if began else None
    begun = submitted(engine)
    if began:
        begun.result(5)
    else:
        threading.Event().wait(0.1)
    engine.close()
    with pytest.raises(BrokenExecutor):
        begun.result(5).result(5)
    assert task.ended.wait(5)
    with pytest.raises(BrokenExecutor):
        engine.submit("import", IMPORT).result(5)


def test_what_waits_for_a_node_that_is_gone_is_begun_anew(task: Waiting) -> None:
    task.fits = False
    with pytest.raises(EngineAway, match="is gone"):
        submitted(RayEngine(task)).result(5).result(5)
    assert task.ended.wait(5)


def test_a_cluster_that_is_lost_is_waited_for(task: Waiting) -> None:
    begun = submitted(RayEngine(task))
    task.now = EngineAway("gone")
    with pytest.raises(EngineAway):
        begun.result(5).result(5)
    task = Waiting()
    begun = submitted(RayEngine(task))
    task.answer.set_exception(ConnectionError("gone"))
    with pytest.raises(EngineAway):
        begun.result(5).result(5)
