"""The curves of a run in TensorBoard, MLflow and Weights & Biases, read back from what their own programs have kept."""

import json
import multiprocessing
import os
import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedcybgd import Client
from fedcybgd.client.errors import PackageMissing, TrackerFailed
from fedcybgd.client.trackers.tensorboard import TensorBoard
from fedcybgd.coordinator.cli import app
from fedcybgd.shared.contract.views import RunView
from tests.integration.test_measurements import held_out
from tests.support.live import LiveCoordinator
from tests.support.tracked import LIVES, InMLflow, InTensorBoard, InWandB, track_and_die
from tests.support.visits import Hand, finish, settled, start_run

NAMES = ["<b>lost", "found/late", "late"]


@pytest.fixture(params=[InTensorBoard, InMLflow, InWandB], ids=lambda kind: kind.package)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = request.param.package
    if find_spec(package) is None:
        if os.environ.get("CI") and package == "tensorboard":
            pytest.fail("tensorboard is not installed, and CI must not skip it")
        pytest.skip(f"{package} is not installed: pip install '.[{package}]' to run this test")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return request.param(tmp_path)


def expected(client: Client, run: str) -> dict[tuple[str, int], float]:
    """What the coordinator says itself, as far as this test writes it down once more."""
    found: dict[tuple[str, int], float] = {}
    for e in client.runs.evaluations(run):
        assert e.loss is not None
        assert e.accuracy is not None
        assert e.spent is not None
        found |= {("score/loss", e.after_rounds): e.loss, ("score/accuracy", e.after_rounds): e.accuracy}
        found |= {("spent/bytes_up", e.after_rounds): e.spent.bytes_up, ("spent/tokens", e.after_rounds): e.spent.tokens}
        for one, name in zip(client.runs.label_scores(run, e.after_rounds, order="label").scores, NAMES, strict=True):
            assert one.recall is not None
            called = f"label/{one.label} {name.replace('/', '_').replace('<', '_').replace('>', '_')}/recall"
            found[called, e.after_rounds] = one.recall
    for r in client.runs.rounds(run):
        assert r.loss_after is not None
        found["calibration/loss", r.number + 1] = r.loss_after
        if r.number == 0:
            assert r.loss_before is not None
            found["calibration/loss", 0] = r.loss_before
    last = client.runs.get(run)
    return found | {("bytes/down", last.rounds_done): last.bytes.down, ("bytes/up", last.rounds_done): last.bytes.up}


def test_a_run_is_followed_to_its_end_and_each_point_is_there_once(place: Any, live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    hand, client = Hand(live), Client(live.url, live.operator_key)
    task = {"kind": "text-classification", "labels": NAMES, "max_length": 32}
    name = start_run(live, model, [hand], evaluate=held_out(live, tmp_path, "round"), task=task)
    ended: list[RunView] = []
    begun = threading.Event()

    class Watched:
        """The real one; what is done after its first points comes while it follows."""

        def __init__(self) -> None:
            self.of = place.tracker()
            self.open, self.close = self.of.open, self.of.close

        def write(self, points: Any, tags: Any) -> None:
            self.of.write(points, tags)
            begun.set()

    follower = threading.Thread(target=lambda: ended.append(client.runs.track(name, Watched(), every_s=0.05)[0]))
    follower.start()
    assert begun.wait(120)
    finish(live, name, [hand])
    settled(live, name)
    follower.join(120)
    assert [view.state for view in ended] == ["completed"]

    client.runs.export(name, tmp_path / "model")
    view, again = client.runs.track(name, place.tracker(), follow=False)
    assert again == 0, "what is there is not written again"
    points, words = place.kept(view)
    assert len({key for key, _ in points}) == len(points)
    found = {(key.name, key.step): value for key, value in points}
    wanted = expected(client, name)
    assert len(wanted) > 20
    assert {key: found.get(key) for key in wanted} == pytest.approx(wanted, rel=1e-6)
    digest = next(file.digest for file in next(client.runs.exports(name)).files if file.name == "model.safetensors")
    assert digest in words
    for word in ("task.max_length", "32", view.id, "completed"):
        assert word in words


def test_one_that_is_killed_while_it_writes_neither_loses_nor_doubles_a_point(
    place: Any, live: LiveCoordinator, model: str, tmp_path: Path
) -> None:
    hand, client = Hand(live), Client(live.url, live.operator_key)
    task = {"kind": "text-classification", "labels": NAMES, "max_length": 32}
    name = start_run(live, model, [hand], evaluate=held_out(live, tmp_path, "round"), task=task)
    finish(live, name, [hand])
    settled(live, name)
    for _ in range(2):
        dying = multiprocessing.get_context("spawn").Process(target=track_and_die, args=(place, live.url, live.operator_key, name))
        dying.start()
        dying.join(120)
        assert dying.exitcode == -signal.SIGKILL
    view, _ = client.runs.track(name, place.tracker())
    points, _ = place.kept(view)
    keys = [key for key, _ in points]
    assert len(set(keys)) == len(keys) > 2 * LIVES
    found = {(key.name, key.step): value for key, value in points}
    wanted = expected(client, name)
    assert {key: found.get(key) for key in wanted} == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("place", [InTensorBoard, InWandB], indirect=True, ids=lambda kind: kind.package)
def test_a_file_that_is_torn_is_made_good(place: Any, live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    hand, client = Hand(live), Client(live.url, live.operator_key)
    task = {"kind": "text-classification", "labels": NAMES, "max_length": 32}
    name = start_run(live, model, [hand], evaluate=held_out(live, tmp_path, "end"), task=task)
    finish(live, name, [hand])
    settled(live, name)
    view, written = client.runs.track(name, place.tracker(), follow=False)
    whole = sorted(place.kept(view)[0])
    assert len(whole) == written
    [file] = [*tmp_path.glob("*/events.*"), *tmp_path.glob("wandb/offline-run-*/*.wandb")]
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    _, again = client.runs.track(name, place.tracker(), follow=False)
    assert 0 < again < written
    assert sorted(place.kept(view)[0]) == whole


def test_two_do_not_write_one_run_at_once(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]' to run this test")
    name = start_run(live, model, [Hand(live)])
    client = Client(live.url, live.operator_key)
    stop, begun = threading.Event(), threading.Event()

    class Slow(TensorBoard):
        def write(self, points: Any, tags: Any) -> None:
            super().write(points, tags)
            begun.set()
            assert stop.wait(60)

    first = threading.Thread(target=lambda: client.runs.track(name, Slow(tmp_path), follow=False))
    first.start()
    assert begun.wait(60)
    with pytest.raises(TrackerFailed, match="already"):
        client.runs.track(name, TensorBoard(tmp_path), follow=False)
    stop.set()
    first.join(60)
    client.runs.track(name, TensorBoard(tmp_path), follow=False)


@pytest.mark.parametrize(("option", "extra"), [("--tensorboard", "tensorboard"), ("--mlflow", "mlflow"), ("--wandb", "wandb")])
def test_where_a_package_is_missing_the_extra_is_named(
    option: str, extra: str, live: LiveCoordinator, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = start_run(live, model, [Hand(live)])
    for module in ("tensorboard.summary.writer.event_file_writer", "mlflow", "mlflow.entities", "wandb"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key}
    ended = CliRunner().invoke(app, ["run", "track", name, option, str(tmp_path / "there"), "--once"], env=environment)
    assert isinstance(ended.exception, PackageMissing)
    assert f"pip install '.[{extra}]'" in ended.exception.message
    assert not (tmp_path / "there").exists()


def test_the_command_says_how_many_points_there_were(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]' to run this test")
    hand = Hand(live)
    name = start_run(live, model, [hand], evaluate=held_out(live, tmp_path, "end"))
    finish(live, name, [hand])
    settled(live, name)
    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key}
    words = ["run", "track", name, "--tensorboard", str(tmp_path / "tb")]
    first = json.loads(CliRunner().invoke(app, [*words, "--json"], env=environment).stdout)
    assert (first["run"], first["state"]) == (name, "completed")
    assert first["points"] > 10
    assert "completed" in (said := CliRunner().invoke(app, words, env=environment).stdout)
    assert said.rstrip().endswith(" 0 points written")
    without = CliRunner().invoke(app, words[:3], env=environment)
    assert without.exit_code == 2
    assert "say where to" in without.stderr
