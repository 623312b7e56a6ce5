"""An owner lets a run use rows by a command: told first what it would do, and the coordinator hears of it."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedcybgd.agent.cli import app
from fedcybgd.agent.settings import Home
from tests.support.live import LiveCoordinator
from tests.support.visits import fresh, run_file


@pytest.fixture
def home(live: LiveCoordinator, tmp_path: Path) -> Path:
    """An agent whose rows no run may use yet."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}", "label": n % 2}) + "\n" for n in range(8)))
    token = live.operator.post("/enrolment-tokens", {})["token"]
    name = fresh("owner")
    done = CliRunner().invoke(
        app, ["enroll", live.url, "--token", token, "--name", name, "--data", str(rows), "--home", str(tmp_path / "home")]
    )
    assert done.exit_code == 0, done.output
    (tmp_path / "home" / "name").write_text(name)
    return tmp_path / "home"


def standing(live: LiveCoordinator, run: str, home: Path) -> str:
    members = {m["agent"]: m["standing"] for m in live.operator.every(f"/runs/{run}/readiness")}
    return str(members[(home / "name").read_text()])


def test_it_is_asked_and_told_before_anything_is_written(live: LiveCoordinator, model: str, home: Path) -> None:
    run = live.create_run(run_file(model, []) | {"agents": "all"})["name"]
    elsewhere = Home(home).config.rename(home / "kept.toml")
    elsewhere.write_text(elsewhere.read_text().replace("\nruns = ", "\ntell_labels = true\nruns = "))
    Home(home).config.symlink_to(elsewhere)
    if os.geteuid() == 0:
        os.chown(elsewhere, 12345, 12345)
    before, owner = Home(home).config.read_text(), elsewhere.stat().st_uid
    no = CliRunner().invoke(app, ["approve", run, "--home", str(home)], input="n\n")
    assert no.exit_code == 1
    assert "text-classification" in no.output
    assert "head" in no.output
    assert "how many rows of each label" in no.output
    assert Home(home).config.read_text() == before
    yes = CliRunner().invoke(app, ["approve", run, "--home", str(home)], input="y\n")
    assert (yes.exit_code, "8 rows" in yes.output) == (0, True), yes.output
    assert Home(home).load_config().data.popitem()[1].runs == [run]
    assert Home(home).config.is_symlink(), "what the link names was written"
    assert elsewhere.stat().st_uid == owner
    assert standing(live, run, home) == "ready"
    again = CliRunner().invoke(app, ["approve", run, "--home", str(home), "--json"])
    assert json.loads(again.stdout)["fits"] is True
    assert Home(home).load_config().data.popitem()[1].runs == [run], "it is named once"


def test_what_is_not_open_or_not_allowed_is_refused(live: LiveCoordinator, model: str, home: Path) -> None:
    before = Home(home).config.read_text()
    unknown = CliRunner().invoke(app, ["approve", fresh("nothing"), "--yes", "--home", str(home)])
    assert getattr(unknown.exception, "code", "") == "run_not_open"
    run = live.create_run(run_file(model, []) | {"agents": "all"})["name"]
    Home(home).policy.write_text('[work]\nruns = ["others-*"]\n')
    forbidden = CliRunner().invoke(app, ["approve", run, "--yes", "--home", str(home)])
    assert getattr(forbidden.exception, "code", "") == "policy_refused"
    other = CliRunner().invoke(app, ["approve", run, "--yes", "--data", "none", "--home", str(home)])
    assert other.exit_code != 0
    assert Home(home).config.read_text() == before


def test_a_run_that_has_other_rows_is_not_given_these_too(live: LiveCoordinator, model: str, home: Path) -> None:
    """With both it would get none."""
    run = live.create_run(run_file(model, []) | {"agents": "all"})["name"]
    with Home(home).config.open("a") as file:
        file.write(f'[data.second]\npath = "b.jsonl"\nruns = ["{run}"]\n')
    before = Home(home).config.read_text()
    first = next(iter(Home(home).load_config().data))
    refused = CliRunner().invoke(app, ["approve", run, "--yes", "--data", first, "--home", str(home)])
    assert "second" in str(refused.exception)
    assert Home(home).config.read_text() == before
