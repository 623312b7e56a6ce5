"""An agent says whether its data fit a run, refuses what went wrong, and takes it again when that was mended: no restart."""

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedcybgd.agent import cli, readiness, worker
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import StopRequested, VisitFailed
from fedcybgd.agent.settings import Config, Home
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.manifests import Manifest
from fedcybgd.shared.contract.training import TrainSettings
from fedcybgd.shared.contract.words import OFFERS
from tests.support.hostile import Answer, Asked, FakeServer, serving

RUN = "run_" + 16 * "0"
OTHER = "run_" + 16 * "1"
OFFER = {
    "state": "draft", "task": "text-classification", "fields": ["text and label"], "optional_fields": [], "num_labels": 2,
    "label_names": None, "max_length": 8, "files": [],
}  # fmt: skip
GOOD = '{"text": "alpha", "label": 0}\n'


class Coordinator:
    """Offers two runs, hands out work of one unless it is refused, and notes what it was told."""

    def __init__(self) -> None:
        self.offers = "1"
        self.visits: dict[str, Any] | None = None
        self.work = True
        self.claims: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.returned: list[dict[str, Any]] = []

    def __call__(self, asked: Asked) -> Answer:
        body = json.loads(asked.body) if asked.body else {}
        path = asked.path.split("?")[0]
        if path.endswith("/agents/me"):
            runs = [{"run_id": RUN, "name": "mine", "visits": self.visits, **OFFER}, {"run_id": OTHER, "name": "other", **OFFER}]
            me = {"agent_id": "agt_" + 16 * "0", "name": "ann", "state": "active", "enrolled_at": "2025-01-01T00:00:00Z"}
            return Answer.json({**me, "runs": runs}, **{OFFERS: self.offers})
        if path.endswith("/health"):
            return Answer.json({"status": "ok", "version": "1"})
        if path.endswith("/readiness"):
            self.told.append({word["run_id"]: word for word in body["runs"]})
            return Answer(204)
        if path.endswith("/claim"):
            self.claims.append(body)
            if not self.work or RUN in body["refuses"]:
                return Answer(204, headers={OFFERS: self.offers})
            return Answer.json(assignment().model_dump(mode="json"), **{OFFERS: self.offers})
        if path.endswith("/return"):
            self.returned.append(body)
        return Answer.json({"assignment_id": "asg_" + 16 * "0", "state": "pending", "reason": None, "attempt": 1})


def assignment() -> LeasedAssignment:
    train = TrainSettings(task="text-classification", num_labels=2, groups=[], batch_size=1, max_length=8, seed=0)
    return LeasedAssignment(
        assignment_id="asg_" + 16 * "0", attempt=1, lease_seconds=60, run_id=RUN, run_name="mine", round=0, cycle=0, block="head",
        manifest=Manifest(files=[], blocks=[]), train=train, max_delta_bytes=10,
    )  # fmt: skip


class Failing:
    """A training process in which every visit fails in one way."""

    walls = None

    def __init__(self, reason: Any) -> None:
        self.reason = reason
        self.visits = 0

    def train(self, *_: Any) -> None:
        self.visits += 1
        raise VisitFailed(self.reason, "row 7 of the rows")

    def stop(self) -> None:
        pass


class Scene:
    def __init__(self, folder: Path, server: FakeServer, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
        monkeypatch.setattr(worker, "FAILURE_PAUSE_S", 0.0)
        self.home, self.coordinator, self.url = Home(folder), coordinator, server.url
        self.rows = folder / "rows.jsonl"
        self.rows.write_text(GOOD)
        self.write("mine")
        self.home.credentials.write_text(json.dumps({"agent_id": "agt_" + 16 * "0", "name": "ann", "key": "fca_x"}))
        self.trainer = Failing(reason)
        self.worker = worker.Worker(self.home, self.home.load_config(), Client(server.url, "fca_x"))
        self.worker._trainer = self.trainer  # type: ignore[assignment]

    def write(self, runs: str, **data: str | bool) -> None:
        more = "".join(f"{name} = {json.dumps(value)}\n" for name, value in data.items())
        self.home.config.write_text(f'coordinator = "{self.url}"\n[data.a]\npath = "rows.jsonl"\nruns = ["{runs}"]\n{more}')

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.home.status.read_text())
        return found


@pytest.fixture(params=["data_invalid"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    coordinator = Coordinator()
    with serving(coordinator) as server:
        yield Scene(tmp_path, server, coordinator, monkeypatch, request.param)


every_reason = pytest.mark.parametrize(
    "scene", ["data_invalid", "out_of_memory", "memory_limit", "disk_limit", "delta_refused"], indirect=True
)


@every_reason
def test_what_went_wrong_is_refused(scene: Scene) -> None:
    scene.worker._one()
    scene.worker._one()
    assert scene.trainer.visits == 1
    assert scene.coordinator.claims[-1]["refuses"] == [RUN, OTHER]
    (mine,) = (r for r in scene.status()["takes_no_work_of"] if r["run"] == "mine")
    assert (mine["reason"], mine["message"]) == (scene.trainer.reason, "row 7 of the rows")


@every_reason
@pytest.mark.parametrize("mended", ["rows", "settings", "check", "new file"])
def test_and_taken_again_when_it_was_mended(scene: Scene, mended: str) -> None:
    scene.worker._one()
    match mended:
        case "rows":
            scene.rows.write_text(GOOD + GOOD)
        case "settings":
            scene.write("mine", tell_rows="no")
        case "check":
            scene.home.checked.touch()
        case "new file":
            new = scene.rows.with_suffix(".new")
            new.write_text(GOOD)
            os.utime(new, ns=(1, 1))
            new.replace(scene.rows)
    scene.worker._one()
    assert scene.trainer.visits == 2 or mended == "settings"  # with other settings the training process is another one
    assert RUN not in scene.coordinator.claims[1]["refuses"]
    assert scene.coordinator.told[-1][RUN]["fits"] is True


def test_another_run_that_comes_lifts_nothing(scene: Scene) -> None:
    scene.worker._one()
    scene.coordinator.offers = "2"
    scene.worker._one()
    scene.worker._one()
    assert RUN in scene.coordinator.claims[-1]["refuses"]
    assert scene.coordinator.told[-1][RUN] == {"run_id": RUN, "fits": False, "reason": "data_invalid", "rows": None, "exact": False}
    assert scene.trainer.visits == 1


def test_what_an_agent_says_before_its_first_claim(scene: Scene) -> None:
    scene.coordinator.work = False
    scene.worker._one()
    assert scene.coordinator.told == [
        {
            RUN: {"run_id": RUN, "fits": True, "reason": None, "rows": 1, "exact": False},
            OTHER: {"run_id": OTHER, "fits": False, "reason": "not_consented", "rows": None, "exact": False},
        }
    ]
    scene.worker._one()
    scene.worker._one()
    assert len(scene.coordinator.told) == 1, "it is said once"
    scene.coordinator.offers = "2"
    scene.worker._one()
    scene.worker._one()
    assert len(scene.coordinator.told) == 2, "and again when there are other runs"


def test_who_is_asked_to_stop_while_it_reads_its_rows_says_nothing_of_them(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield {"text": "alpha", "label": 0}

    monkeypatch.setattr(readiness, "rows_of", stopped)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        scene.worker._stop.listen()
        with pytest.raises(StopRequested):
            scene.worker._one()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        scene.worker._stop.left()
    assert scene.coordinator.told == [], "its rows are not wrong"


def test_an_image_that_comes_later_is_noticed(scene: Scene) -> None:
    """Here the folder of them is what a visit needs, be it for rows of text: only that it is looked at counts."""
    (scene.home.path / "pictures").mkdir()
    scene.write("mine", images="pictures")
    scene.worker._one()
    assert scene.trainer.visits == 1
    scene.worker._one()
    assert RUN in scene.coordinator.claims[-1]["refuses"]
    (scene.home.path / "pictures" / "1.png").touch()
    scene.worker._one()
    assert RUN not in scene.coordinator.claims[-1]["refuses"]


@pytest.mark.parametrize("call", ["open", "is_file"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EMFILE])
def test_rows_that_cannot_be_had_at_present_are_looked_at_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """The file itself does not change: a share comes back, somebody gives the right to read it."""
    scene.coordinator.work = False
    asked = getattr(Path, call)

    def fails(path: Path, *more: Any, **named: Any) -> Any:
        if path == scene.rows:
            raise OSError(number, os.strerror(number), str(path))
        return asked(path, *more, **named)

    with monkeypatch.context() as away:
        away.setattr(Path, call, fails)
        scene.worker._one()
    assert [told[RUN]["reason"] for told in scene.coordinator.told] == ["data_missing"]
    scene.worker._one()
    assert len(scene.coordinator.told) == 1, "it is not read all the time"
    monkeypatch.setattr(scene.worker._standing, "_again_at", 0.0)
    scene.worker._one()
    assert scene.coordinator.told[-1][RUN]["fits"] is True


@pytest.mark.parametrize(
    ("rows", "tell", "said"), [(1, "roughly", 1), (9, "roughly", 1), (10, "roughly", 10), (1234, "roughly", 1000), (1234, "exactly", 1234), (1234, "no", None)]
)  # fmt: skip
def test_how_many_rows_there_are_is_said_as_the_owner_likes(scene: Scene, rows: int, tell: str, said: int | None) -> None:
    scene.coordinator.work = False
    scene.rows.write_text(GOOD * rows)
    scene.write("mine", tell_rows=tell)
    scene.worker._one()
    told = scene.coordinator.told[-1][RUN]
    assert (told["fits"], told["rows"], told["exact"]) == (True, said, tell == "exactly")


@pytest.mark.parametrize(("tell", "reason"), [("roughly", None), ("no", "rows_hidden")])
def test_where_rows_weigh_who_hides_them_takes_no_part(scene: Scene, tell: str, reason: str | None) -> None:
    scene.coordinator.work = False
    scene.coordinator.visits = {"blocks": ["layers.0"], "batch_size": 8, "delta_patches": False, "weighed_by_rows": True}
    scene.write("mine", tell_rows=tell)
    scene.worker._one()
    assert scene.coordinator.told[-1][RUN]["reason"] == reason
    assert scene.coordinator.claims[-1]["refuses"] == ([RUN, OTHER] if reason else [OTHER])


@pytest.mark.parametrize(
    ("rows", "reason"), [(None, "data_missing"), ('{"sentence": "private"}\n', "data_invalid"), ("", "data_invalid"), ("no json", "data_invalid")]
)  # fmt: skip
def test_data_that_do_not_fit_are_said_in_a_word(scene: Scene, rows: str | None, reason: str) -> None:
    if rows is None:
        scene.rows.unlink()
    else:
        scene.rows.write_text(rows)
    scene.worker._one()
    assert scene.coordinator.told[-1][RUN] == {"run_id": RUN, "fits": False, "reason": reason, "rows": None, "exact": False}
    assert scene.coordinator.claims[-1]["refuses"] == [RUN, OTHER]
    scene.rows.write_text(GOOD)
    scene.worker._one()
    assert scene.coordinator.claims[-1]["refuses"] == [OTHER]


def test_status_says_the_last_error_and_what_it_takes_no_work_of(scene: Scene) -> None:
    scene.worker._one()
    scene.worker._one()
    shown = CliRunner().invoke(cli.app, ["status", "--home", str(scene.home.path)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.exc_info
    assert "waiting for work" in shown.output
    assert "UTC: data_invalid: row 7 of the rows" in shown.output
    assert "takes no work of run mine: data_invalid: row 7 of the rows" in shown.output
    assert "takes no work of run other: not_consented: no data may be used for run other" in shown.output


def test_check_says_which_run_meets_which_data_and_lifts_what_was_refused(scene: Scene) -> None:
    scene.worker._one()

    def check() -> tuple[int, list[str]]:
        result = CliRunner().invoke(cli.app, ["check", "--home", str(scene.home.path)])
        return result.exit_code, [line for line in result.output.splitlines() if " run " in line or " data " in line or " consent" in line]

    status, lines = check()
    assert [line[:14] for line in lines] == ["ok    data a: ", "ok    run mine", "note  run mine", "no    run othe"]
    assert "1 rows of data a fit" in lines[1]
    assert 'add "other" to `runs` of [data.a]' in lines[3]
    assert scene.coordinator.told[-1][RUN]["fits"] is True
    scene.worker._one()
    assert RUN not in scene.coordinator.claims[-1]["refuses"]
    scene.rows.write_text('{"text": "alpha", "label": 7}\n')
    status, lines = check()
    assert status == 1
    assert "label 7" in lines[1]
    assert scene.coordinator.told[-1][RUN]["reason"] == "data_invalid"
    scene.home.config.write_text(scene.home.config.read_text().replace('runs = ["mine"]', "runs = []"))
    status, lines = check()
    assert status == 1
    assert any(line.startswith("wrong consent: no run may use any of the data") for line in lines)


def test_check_says_what_counts_of_labels_would_be_told_and_of_whom_none_are_nothing(scene: Scene) -> None:

    def said() -> list[str]:
        result = CliRunner().invoke(cli.app, ["check", "--home", str(scene.home.path)], env={"COLUMNS": "400"})
        return [line for line in result.output.splitlines() if "tell_labels" in line]

    assert said() == []
    scene.write("mine", tell_labels=True)
    [line] = said()
    assert "1 of 2 labels, 1 to 1 rows each" in line


def test_check_asks_which_of_two_sets_is_meant(scene: Scene) -> None:
    scene.home.config.write_text(scene.home.config.read_text().replace("mine", "m*") + '[data.b]\npath = "rows.jsonl"\nruns = ["*"]\n')
    result = CliRunner().invoke(cli.app, ["check", "--home", str(scene.home.path)])
    assert result.exit_code == 1
    assert "wrong run mine: several data sets could be meant" in result.output
    assert "ok    run other: 1 rows of data b fit" in result.output


def test_settings_that_change_how_it_trains_make_a_new_training_process(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Config] = []

    class Trainer(Failing):
        def __init__(self, config: Config, _home: Home) -> None:
            super().__init__("data_invalid")
            made.append(config)

        def start(self) -> None:
            pass

        close = start

    monkeypatch.setattr(worker, "TrainerProcess", Trainer)
    scene.worker._trainer = Trainer(scene.home.load_config(), scene.home)  # type: ignore[assignment]
    scene.coordinator.work = False
    scene.write("mine", tell_rows="no")
    scene.worker._one()
    assert len(made) == 1, "other consent, the same process"
    scene.home.config.write_text(scene.home.config.read_text() + "[limits]\nmemory_gb = 3\n")
    scene.worker._one()
    assert [config.limits.memory_gb for config in made] == [None, 3]
    assert scene.coordinator.claims[-1]["limits"]["memory_bytes"] == 3_000_000_000


@pytest.mark.parametrize(("least", "wrong"), [(None, False), (20 * 10**9, False), (30 * 10**9, True)])
def test_check_says_where_the_disk_that_is_allowed_cannot_hold_the_model(scene: Scene, least: int | None, wrong: bool) -> None:
    scene.coordinator.visits = {"blocks": ["layers.0"], "batch_size": 8, "delta_patches": False, "least_disk_bytes": least}
    result = CliRunner().invoke(cli.app, ["check", "--home", str(scene.home.path)])
    assert (": its model takes 30.0 GB of disk at the least, and limits.disk_gb allows 20.0 GB" in result.output) == wrong
    assert ("raise limits.disk_gb" in result.output) == wrong


def test_check_says_a_missing_file_once_for_all_runs_that_wait_for_it(scene: Scene) -> None:
    scene.write("*")
    scene.rows.unlink()
    result = CliRunner().invoke(cli.app, ["check", "--home", str(scene.home.path)])
    assert result.exit_code == 1
    assert result.output.count("rows.jsonl") == 1, result.output
    assert "no    runs mine, other: no work is taken until data a can be read" in result.output
    assert {told["reason"] for told in scene.coordinator.told[-1].values()} == {"data_missing"}
