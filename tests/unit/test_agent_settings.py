"""The agent's own file is read whole or refused by field; its hours may go over midnight."""

import tomllib
from datetime import datetime
from pathlib import Path

import pytest

from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.settings import Config, Home, template, within_hours

GOOD = """\
coordinator = "https://fed.example:8440"
plain_http = true
log_format = "json"
[data.questions]
path = "rows.csv"
format = "csv"
separator = ";"
encoding = "cp1252"
quotes = false
first_label = 1
images = "photos"
columns = { text = "question" }
runs = ["bank*"]
tell_rows = "no"
tell_labels = true
[device]
kind = "cpu"
gpu = 1
threads = 2
[limits]
memory_gb = 8
gpu_memory_gb = 20
disk_gb = 0.5
hours = ["22:00-06:00", "12:00-13:30"]
bandwidth_mbit = 50
stall_s = 900
[training]
checkpointing = "on"
prefix_cache = "disk"
chunked_logits = "off"
graphs = "auto"
[site_cache]
url = "https://cache.example:8441"
plain_http = true
"""


def home(folder: Path, text: str) -> Home:
    place = Home(folder)
    place.config.write_text(text)
    return place


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        home(folder, text).load_config()
    assert error.value.code == "config_invalid"
    assert "agent.toml" in error.value.message
    return error.value.message


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    config = home(tmp_path, GOOD).load_config()
    assert config.model_dump() == tomllib.loads(GOOD)


def test_the_coordinator_and_the_data_are_enough(tmp_path: Path) -> None:
    config = home(tmp_path, 'coordinator = "http://c"\n[data]\npath = "a.csv"\n').load_config()
    assert (config.device.kind, config.limits.disk_gb, config.limits.hours, config.data["rows"].runs) == ("auto", 20, [], [])


@pytest.mark.parametrize("data", [None, "/data/my rows.csv", 'C:\\rows\\new "one".csv'])
def test_the_first_file_that_we_write_is_good(tmp_path: Path, data: str | None) -> None:
    config = home(tmp_path, template("http://c:1", data, ["bank-*", "x"])).load_config()
    rows = {"path": data or "data.jsonl", "runs": ["bank-*", "x"]}
    assert config == Config.model_validate({"coordinator": "http://c:1", "data": {"rows": rows}})


def test_data_lie_beside_the_file_unless_their_path_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    place = Home(tmp_path)
    for given, meant in [("a.csv", tmp_path.resolve() / "a.csv"), ("/x/a.csv", Path("/x/a.csv")), ("~/a.csv", Path("/home/ann/a.csv"))]:
        config = Config.model_validate({"coordinator": "http://c", "data": {"path": given}})
        assert place.data_path(config.data["rows"]) == meant


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('coordinator = "https://fed.example:8440"', "", "coordinator: this setting is missing"),
        ("https://", "ftp://", "coordinator: "),
        ('path = "rows.csv"', "", "data.questions.path: this setting is missing"),
        ('format = "csv"', 'format = "xlsx"', "data.questions.format: "),
        ('columns = { text = "question" }', "columns = { text = 3 }", "data.questions.columns.text: "),
        ('kind = "cpu"', 'kind = "tpu"', "device.kind: "),
        ("threads = 2", "threads = -1", "device.threads: "),
        ("threads = 2", "therads = 2", "device.therads: there is no such setting"),
        ("memory_gb = 8", "memory_gb = 0", "limits.memory_gb: "),
        ("disk_gb = 0.5", 'disk_gb = "all"', "limits.disk_gb: "),
        ("12:00-13:30", "12-13", "limits.hours.1: "),
        ('checkpointing = "on"', 'checkpointing = "yes"', "training.checkpointing: "),
        ('prefix_cache = "disk"', 'prefix_cache = "on"', "training.prefix_cache: "),
        ("chunked_logits", "chunked_logit", "training.chunked_logit: there is no such setting"),
        ("12:00-13:30", "12:00-24:00", "limits.hours.1: "),
        ("12:00-13:30", "12:60-13:00", "limits.hours.1: "),
        ('runs = ["bank*"]', 'runs = "bank*"', "data.questions.runs: "),
        ("[device]", "[devices]", "devices: there is no such setting"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    assert f"\n  {says}" in refused(tmp_path, GOOD.replace(old, new))


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, GOOD.replace("threads = 2", "threads = -1").replace('"cpu"', '"tpu"'))
    assert "device.threads: " in message
    assert "device.kind: " in message


def test_what_is_no_toml_has_its_line(tmp_path: Path) -> None:
    assert "is no TOML" in refused(tmp_path, "coordinator = \n")
    assert "line 1" in refused(tmp_path, "coordinator = \n")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    place = Home(tmp_path)
    place.config.write_bytes('coordinator = "http://m\u00fcller"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is no TOML"):
        place.load_config()


def test_without_a_file_the_way_to_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedagent enroll"):
        Home(tmp_path).load_config()


@pytest.mark.parametrize(
    ("hours", "at", "inside"),
    [
        ([], "03:00", True),
        (["09:00-17:00"], "08:59", False),
        (["09:00-17:00"], "09:00", True),
        (["09:00-17:00"], "16:59", True),
        (["09:00-17:00"], "17:00", False),
        (["22:00-06:00"], "21:59", False),
        (["22:00-06:00"], "22:00", True),
        (["22:00-06:00"], "00:00", True),
        (["22:00-06:00"], "05:59", True),
        (["22:00-06:00"], "06:00", False),
        (["22:00-06:00"], "12:00", False),
        (["22:00-00:00"], "23:59", True),
        (["22:00-00:00"], "00:00", False),
        (["00:00-06:00"], "00:00", True),
        (["22:00-06:00", "12:00-13:00"], "12:30", True),
        (["22:00-06:00", "12:00-13:00"], "14:00", False),
        (["00:00-00:00"], "15:00", True),
        (["08:00-08:00"], "07:59", True),
    ],
)
def test_hours(hours: list[str], at: str, inside: bool) -> None:
    assert within_hours(hours, datetime.fromisoformat(f"2025-03-01T{at}")) is inside


@pytest.mark.parametrize("unreadable", ["a directory", "a circle"])
def test_an_agent_toml_that_cannot_be_read_is_no_traceback(unreadable: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    if unreadable == "a directory":
        home.config.mkdir()
    else:
        home.config.symlink_to(home.config)
    with pytest.raises(ConfigError, match=r"agent.toml cannot be read: .*; make it a file"):
        home.load_config()
