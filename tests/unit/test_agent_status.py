"""What an agent shows of itself to its owner, and what of it may be sent to somebody who helps."""

import getpass
import io
import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import credentials, report, sent, status
from fedcybgd.agent.client import Client
from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.errors import AgentError
from fedcybgd.agent.settings import Home
from fedcybgd.agent.showing import Showing
from fedcybgd.agent.signing import new_private_key
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.host.terminal import Terminal
from tests.unit.test_residuals import assignment

URL = "http://127.0.0.1:9"
ROW = "the patient has a fever"
KEYS = Credentials("agt_0123456789abcdef", "berlin", "fca_q9w8e7r6t5z4u3i2o1p0", "ins_1", new_private_key(), new_private_key())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    place = Home(tmp_path / "home")
    credentials.save(place, KEYS)
    rows = tmp_path / "secret-folder" / "patients.csv.gz"
    place.config.write_text(
        f'coordinator = "{URL}"\n[data.rows]\npath = "{rows}"\nruns = ["intents"]\ncolumns = {{ text = "diagnosis", label = "hiv_positive" }}\n'
    )
    return place


@pytest.fixture
def shows(home: Home) -> Showing:
    return Showing(home, Client(URL), lambda: "all walls stand", list)


def seen(home: Home) -> str:
    file = io.StringIO()
    Terminal(file=file, width=150, force_terminal=True, color_system=None).parts(status.parts(status.gathered(home, KEYS)))
    return file.getvalue()


def visit(shows: Showing, delivered: bool, up: int, down: int, run: str = "intents") -> None:
    work = assignment(1).model_copy(update={"run_name": run})
    shows.begins(100)
    shows.progress(work, Progress(phase="training", step=3, steps=8, loss=0.25, tokens_per_s=1234), 2)
    shows._client.bytes_sent += up
    shows.ends(work, 100 + down, delivered)


def test_status_shows_the_visit_and_what_has_left(home: Home, shows: Showing) -> None:
    assert "it has not run yet" in seen(home)
    shows.begins(0)
    shows.progress(assignment(1), Progress(phase="training", step=3, steps=8, loss=0.25, tokens_per_s=1234), 2)
    (home.cache).mkdir()
    (home.cache / "shard").write_bytes(b"x" * 30_000_000)
    text = seen(home)
    for word in (
        "training, step 3 of 8, loss 0.250, 1,234 tokens/s",
        "spoken to again by",
        "cache: 30.0 MB of 20.0 GB",
        "no delta has left",
    ):
        assert word in text
    drawn = io.StringIO()
    Terminal(file=drawn, width=60).print(status.draw(status.gathered(home, KEYS)))
    assert [line for line in drawn.getvalue().splitlines() if line.startswith("━") and " " in line.strip()] == [], (
        "the bar has a line of its own"
    )
    shows.ends(assignment(1), 0, False)
    visit(shows, True, 2_500_000, 7_000_000)
    visit(shows, False, 500_000, 0)
    visit(shows, True, 1_000_000, 0, run="other")
    shows.note("unreachable: no coordinator answers", "unreachable")
    shows.state("waiting for work", 25)
    text = seen(home)
    line = next(line for line in text.splitlines() if " intents " in line)
    assert line.split()[:5] == [URL, "intents", "1", "3.0", "7.0"]
    assert "2 visits done" in text
    assert "no coordinator answers" in text
    ledger = {one.run: (one.deltas, one.bytes_sent, one.bytes_fetched) for one in sent.read(home.sent)}
    assert ledger == {"intents": (1, 3_000_000, 7_000_000), "other": (1, 1_000_000, 0)}
    shows.state("stopped")
    assert "not running" in seen(home)


def test_what_was_sent_is_bounded_and_never_lost_in_sum(tmp_path: Path) -> None:
    path = tmp_path / "sent.json"
    path.write_text("{no json")
    for number in range(sent.MOST_RUNS + 50):
        sent.add(path, URL, f"run-{number}", 1, 10, 1)
    found = sent.read(path)
    assert len(found) == sent.MOST_RUNS
    assert found[0].run == sent.EARLIER
    assert (sum(one.deltas for one in found), sum(one.bytes_sent for one in found)) == (sent.MOST_RUNS + 50, 10 * (sent.MOST_RUNS + 50))
    before = path.read_text()
    sent.add(path, URL, "nothing", 0, 0, 0)
    assert path.read_text() == before


def test_metrics_tell_steps_bytes_and_failures(shows: Showing) -> None:
    visit(shows, True, 2_000, 500)
    shows.failed("data_invalid")
    text = shows.metrics()
    for line in (
        "fedagent_visits_total 1", "fedagent_steps_total 3", 'fedagent_bytes_total{direction="up"} 2000', 'fedagent_bytes_total{direction="down"} 500',
        'fedagent_failures_total{reason="data_invalid"} 1', "fedagent_tokens_per_second 1234", "fedagent_training 0",
    ):  # fmt: skip
        assert line in text.splitlines()


def test_a_report_has_no_key_no_row_and_no_path(home: Home, shows: Showing, tmp_path: Path) -> None:
    visit(shows, True, 2_000, 500)
    shows.note(f"data_invalid: row 7 of {tmp_path}/secret-folder/patients.csv.gz: {ROW}", "data_invalid: the agent's own log says more")
    shows.note(
        f"no answer at http://ann:pa55@proxy.example/x?token=abc by fct_0123456789 with {KEYS.key} for {getpass.getuser()} in {home.path}/cache",
        "",
    )
    shows.note(
        "safe",
        f"http://ann:pa55@proxy.example/x?token=abc fct_0123456789 {KEYS.key} {KEYS.private_key} {home.path}/cache /etc/hosts ~/rows.csv",
    )
    shows.state("waiting for work", 25)
    values: dict[str, Any] = json.loads(home.status.read_text()) | {"walls": f"see {Path.home()}/notes on {socket.gethostname()}"}
    home.status.write_text(json.dumps(values))
    file = tmp_path / "report.json"
    assert report.write(home, file) == file.stat().st_size
    text = file.read_text()
    made = json.loads(text)
    gone = [*(v for k, v in asdict(KEYS).items() if "key" in k), ROW, "fever", str(tmp_path), "patients", "secret-folder", "diagnosis", "hiv_positive",
            "pa55", "fct_0123456789", "token=abc", "/etc/hosts", "rows.csv", "notes"]  # fmt: skip
    if len(getpass.getuser()) > 3 and getpass.getuser() not in "data rows home run":
        gone.append(getpass.getuser())
    assert [word for word in gone if word in text.replace(made["about"], "")] == []
    assert made["status"]["errors"][0]["told"] == "data_invalid: the agent's own log says more"
    assert made["settings"]["agent.toml"]["data"]["rows"] == {
        **made["settings"]["agent.toml"]["data"]["rows"], "path": [".csv", ".gz"], "columns": ["label", "text"], "runs": ["intents"],
    }  # fmt: skip
    assert made["sent"][0]["deltas"] == 1
    assert made["coordinator"]["error"], "nobody answers there"
    assert made["packages"]["fedcybgd"]


def test_a_report_names_no_place_with_spaces_and_no_folder_of_images(home: Home, shows: Showing, tmp_path: Path) -> None:
    rows = "/srv/Jane Doe/st mary/scans.parquet"
    home.config.write_text(
        f'coordinator = "{URL}"\n[data.rows]\npath = "{rows}"\nruns = ["*"]\nimages = "../hospital mueller/scans-2024"\n'
    )
    shows.note("safe", f"{rows}: row 3: /srv/Jane Doe/hospital mueller/scans-2024/7.png is no image")
    shows.state("waiting for work", 25)
    report.write(home, tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert [word for word in ("Doe", "mary", "mueller", "scans") if word in text] == []
    assert json.loads(text)["settings"]["agent.toml"]["data"]["rows"]["images"] is True


def test_a_report_is_made_of_wrong_settings_too_and_quotes_nothing_of_them(home: Home, tmp_path: Path) -> None:
    home.config.write_text(f'coordinator = "{URL}"\nnot_a_setting = "{ROW}"\n')
    report.write(home, tmp_path / "r.json")
    assert ROW not in (tmp_path / "r.json").read_text()
    assert "not_a_setting" not in (tmp_path / "r.json").read_text()
    with pytest.raises(AgentError, match="another file"):
        report.write(home, tmp_path)
    with pytest.raises(AgentError, match="is there already"):
        report.write(home, home.config)
    assert "not_a_setting" in home.config.read_text()
    home.credentials.unlink()
    with pytest.raises(AgentError, match="not enrolled"):
        report.write(home, tmp_path / "r.json")
