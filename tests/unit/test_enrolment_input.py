"""What a person types at `fedagent enroll` is right, or one line says what is."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedcybgd.agent import cli, credentials, enrolment
from fedcybgd.agent.errors import ConfigError, NotEnrolled
from fedcybgd.agent.settings import Home
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.host.addresses import address_of
from tests.support.hostile import Answer, Asked, serving

TOKEN = "fct_" + "x" * 43


def enroll(home: Path, url: str, *words: str) -> FedError | None:
    """The error, as `main` prints it in a line."""
    result = CliRunner().invoke(cli.app, ["enroll", url, "--home", str(home), *words])
    assert result.exception is None or isinstance(result.exception, (FedError, SystemExit)), result.exc_info
    return result.exception if isinstance(result.exception, FedError) else None


def coordinator(asked: Asked) -> Answer:
    name = json.loads(asked.body)["name"]
    return Answer.json({"agent_id": "agt_" + 16 * "0", "name": name, "key": "fca_x"}, 201)


@pytest.mark.parametrize(
    "name", ["Dr. Müller's laptop", "", "a b", "-x", ".x", "ü", "x" * 101, "x\n", "x\0", "\x1b[2J", "[/]", "x ", "x\u200f"]
)
def test_a_name_that_is_none_is_said_in_a_line(name: str, tmp_path: Path) -> None:
    error = enroll(tmp_path, "http://127.0.0.1:1", "--token", TOKEN, "--name", name)
    assert error is not None
    assert "letters of A to Z" in error.message
    assert "\n" not in error.message
    assert error.message.isprintable()
    assert error.message.startswith(f"{name!r} is no name" if len(name) < 100 else "'xxx"), "what cannot be seen is written out"
    assert not Home(tmp_path).config.exists()


def test_a_name_that_is_none_is_said_before_anybody_types_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_typed_token", lambda: pytest.fail("a token was asked for"))
    error = enroll(tmp_path, "http://127.0.0.1:1", "--name", "a b", "--runs", "r")
    assert error is not None
    assert "no name for an agent" in error.message


@pytest.mark.parametrize(
    "token", ["fct_x", "fct_…", TOKEN[:-1], TOKEN + "x", TOKEN[4:], "", "fca_" + "x" * 43, TOKEN[:20] + " " + TOKEN[21:]]
)
def test_a_token_that_is_not_whole_is_said_in_a_line(token: str, tmp_path: Path) -> None:
    error = enroll(tmp_path, "http://127.0.0.1:1", "--token", token, "--name", "laptop")
    assert error is not None
    assert f"not whole: it has {len(token)} characters" in error.message


def test_data_that_no_setting_could_name_are_said_before_the_token_is_spent(tmp_path: Path) -> None:
    rows = tmp_path / os.fsdecode(b"r\xff.jsonl")
    rows.write_text('{"text": "a", "label": 0}\n')
    error = enroll(tmp_path / "home", "http://127.0.0.1:1", "--token", TOKEN, "--name", "laptop", "--data", str(rows))
    assert error is not None
    assert "is no UTF-8" in error.message
    assert not (tmp_path / "home" / "agent.toml").exists()


def refuses(_: Asked) -> Answer:
    return Answer.json({"code": "token_used", "message": "it was used already"}, 409, **{"FedCyBGD-Coordinator": "crd_" + 16 * "0"})


@pytest.mark.parametrize("written", ["policy.toml", "agent.toml", "enrolling.json"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, whole = tmp_path / Path(written).with_suffix(".part"), Path.replace

    def full(path: Path, target: Path) -> Path:
        if path == part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with serving(refuses) as server, pytest.raises(OSError, match=written):
        enrolment.enrol(Home(tmp_path), server.url, TOKEN, "laptop", "")
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".part"] == []


@pytest.mark.parametrize("token", [TOKEN[:-1], TOKEN])
def test_an_enrolment_that_fails_leaves_no_file_that_the_next_one_would_have_to_agree_with(token: str, tmp_path: Path) -> None:
    with serving(refuses) as server:
        assert enroll(tmp_path, server.url, "--token", token, "--name", "laptop", "--runs", "x") is not None
    assert not Home(tmp_path).policy.exists()
    assert not Home(tmp_path).config.exists()
    Home(tmp_path).policy.write_text(mine := "# mine\n")
    with serving(refuses) as server:
        assert enroll(tmp_path, server.url, "--token", token, "--name", "laptop", "--runs", "x") is not None
    assert Home(tmp_path).policy.read_text() == mine


@pytest.mark.parametrize("url", ["fedcybgd.coordinator.example", "ftp://x", "http://", "http:///admin", ""])
def test_what_is_no_address_is_said_in_a_line(url: str, tmp_path: Path) -> None:
    error = enroll(tmp_path, url, "--token", TOKEN, "--name", "laptop")
    assert error is not None
    assert "begins with http:// or https://" in error.message


@pytest.mark.parametrize("runs", ["a b/c", "../x", "[ab]", "ü"])
def test_what_is_no_run_is_said_in_a_line(runs: str, tmp_path: Path) -> None:
    error = enroll(tmp_path, "http://127.0.0.1:1", "--token", TOKEN, "--name", "laptop", "--runs", runs)
    assert error is not None
    assert "is no name of a run" in error.message


def test_spaces_around_a_token_do_no_harm() -> None:
    assert enrolment.whole_token(f" {TOKEN}\n") == TOKEN


@pytest.mark.parametrize(
    ("given", "meant"), [("http://c:8440/", "http://c:8440"), ("https://c/admin", "https://c"), ("https://c/fed/v1", "https://c/fed")]
)
def test_what_people_copy_from_a_browser_is_understood(given: str, meant: str) -> None:
    assert address_of(given) == meant


@pytest.mark.parametrize(
    ("host", "name"), [("Müllers MacBook.local", "M-llers-MacBook"), ("-", "agent"), ("", "agent"), ("web01", "web01")]
)
def test_a_host_has_a_name_that_an_agent_may_have(host: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment.platform, "node", lambda: host)
    assert enrolment.agent_name(None) == name


@pytest.mark.parametrize(
    ("words", "runs"),
    [([], []), (["--runs", "intents"], ["intents"]), (["--runs", "a", "--runs", "b-*"], ["a", "b-*"]), (["--runs", "a,b c"], ["a", "b", "c"]), (["--runs", "*"], ["*"])],
)  # fmt: skip
def test_data_are_tied_to_the_runs_that_were_named_and_to_no_others(words: list[str], runs: list[str], tmp_path: Path) -> None:
    with serving(coordinator) as server:
        assert enroll(tmp_path, server.url, "--token", TOKEN, "--name", "laptop", "--data", "rows.csv", *words) is None
    (data,) = Home(tmp_path).load_config().data.values()
    assert data.runs == runs


def test_columns_of_other_names_are_said_at_the_enrolment(tmp_path: Path) -> None:
    given = ["--column", "text=Frage an die Bank", "--column", 'label="Was?"']
    with serving(coordinator) as server:
        assert enroll(tmp_path, server.url, "--token", TOKEN, "--name", "laptop", "--data", "rows.csv", *given) is None
    (data,) = Home(tmp_path).load_config().data.values()
    assert data.columns == {"text": "Frage an die Bank", "label": '"Was?"'}


@pytest.mark.parametrize("column", ["text", "text=", "=frage", "="])
def test_what_is_no_column_is_said_in_a_line(column: str, tmp_path: Path) -> None:
    error = enroll(tmp_path, "http://127.0.0.1:1", "--token", TOKEN, "--column", column)
    assert error is not None
    assert error.code == "config_invalid"
    assert error.message == f"--column {column}: say FIELD=COLUMN, as in text=question"


SETTINGS = 'coordinator = "URL"\n[data.mine]\npath = "rows.csv"\nruns = ["a", "b-*"]\n[device]\nkind = "cpu"\n'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "1"], "--gpu"), (["--gpu", "GPU-1b2c"], "--gpu"), (["--runs", "a", "--runs", "other"], "--runs"),
        (["--data", "other.csv"], "--data"), (["--data", "other.csv", "--runs", "c", "--gpu", "0"], "--data, --gpu"), (["--plain-http"], "--plain-http"),
        (["--column", "text=frage"], "--column"),
    ],
)  # fmt: skip
def test_an_option_that_would_not_count_beside_an_agent_toml_is_refused_before_the_token_is_spent(
    words: list[str], said: str, tmp_path: Path
) -> None:
    with serving(coordinator) as server:
        before = SETTINGS.replace("URL", server.url)
        Home(tmp_path).config.write_text(before)
        error = enroll(tmp_path, server.url, "--token", TOKEN, "--name", "laptop", *words)
        assert server.asked == []
    assert error is not None
    assert error.code == "config_invalid"
    assert f"does not say the same as {said}: write that" in error.message
    assert Home(tmp_path).config.read_text() == before


def test_another_address_than_that_of_an_agent_toml_is_refused(tmp_path: Path) -> None:
    Home(tmp_path).config.write_text(SETTINGS.replace("URL", "https://elsewhere.example"))
    with serving(coordinator) as server:
        error = enroll(tmp_path, server.url, "--token", TOKEN, "--name", "laptop")
        assert server.asked == []
    assert error is not None
    assert "does not say the same as the URL" in error.message


@pytest.mark.parametrize("words", [[], ["--runs", "b-*"], ["--gpu", "1"], ["--data", "DATA", "--runs", "a", "--gpu", "1", "--plain-http"]])
def test_what_an_agent_toml_says_is_in_force_and_nobody_is_asked(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_somebody_is_there", lambda: True)
    home = Home(tmp_path)
    with serving(coordinator) as server:
        home.config.write_text("plain_http = true\n" + SETTINGS.replace("URL", server.url + "/") + "gpu = 1\n")
        given = [word.replace("DATA", str(tmp_path / "rows.csv")) for word in words]
        result = CliRunner().invoke(cli.app, ["enroll", server.url, "--home", str(tmp_path), "--token", TOKEN, "--json", *given])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["runs"] == ["a", "b-*"]


def test_rows_that_are_not_there_are_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    for name, said in {
        "row.csv": ["there is no file", "row.csv", "next: complete it"],
        "rows.csv": [f"next: fedagent check --home {tmp_path}/home-rows.csv, then fedagent run --home {tmp_path}"],
    }.items():
        with serving(coordinator) as server:
            home, data = str(tmp_path / f"home-{name}"), str(tmp_path / name)
            words = ["enroll", server.url, "--home", home, "--token", TOKEN, "--name", "laptop", "--data", data, "--runs", "a"]
            result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, result.output
        assert [part for part in said if part not in result.output] == []
        assert ("there is no file" in result.output) == (name == "row.csv")
    with serving(coordinator) as server:
        enroll(tmp_path / "other", server.url, "--token", TOKEN, "--name", "laptop", "--data", str(tmp_path))
        assert server.asked == []


def test_a_person_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_somebody_is_there", lambda: True)
    with serving(coordinator) as server:
        words: Any = ["enroll", server.url, "--home", str(tmp_path), "--token", TOKEN, "--name", "laptop", "--data", "rows.csv"]
        result = CliRunner().invoke(cli.app, words, input="intents bank-*\n")
    assert result.exit_code == 0, result.output
    assert "Which runs may use rows.csv?" in result.output
    assert Home(tmp_path).load_config().data["rows"].runs == ["intents", "bank-*"]


def test_what_is_wrong_is_refused_before_the_token_is_spent(tmp_path: Path) -> None:
    with serving(coordinator) as server:
        assert enroll(tmp_path, server.url, "--token", TOKEN, "--name", "laptop", "--runs", "ü") is not None
        assert server.asked == []
    with pytest.raises(ConfigError):
        enrolment.agent_name("")


@pytest.mark.parametrize("way", ["file", "stdin", "environment", "typed", "word"])
def test_a_token_need_not_be_where_others_read_it(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    words = {"file": ["--token-file", str(file)], "stdin": ["--token-file", "-"], "word": ["--token", TOKEN]}.get(way, [])
    monkeypatch.setattr(cli, "_somebody_is_there", lambda: way == "typed")
    monkeypatch.setattr(cli, "getpass", lambda _: TOKEN)
    environment = {"FEDAGENT_TOKEN": TOKEN} if way == "environment" else {}
    with serving(coordinator) as server:
        words = ["enroll", server.url, "--home", str(tmp_path / "home"), "--name", "laptop", "--runs", "x", *words]
        result = CliRunner().invoke(cli.app, words, env=environment, input=TOKEN + "\n" if way == "stdin" else None)
        assert result.exit_code == 0, result.output
        (asked,) = server.asked
    assert json.loads(asked.body)["token"] == TOKEN
    assert TOKEN not in result.output


def test_a_missing_token_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_somebody_is_there", lambda: False)
    error = enroll(tmp_path, "http://127.0.0.1:1", "--name", "laptop", "--runs", "x")
    assert error is not None
    assert "FEDAGENT_TOKEN" in error.message
    error = enroll(tmp_path, "http://127.0.0.1:1", "--name", "laptop", "--runs", "x", "--token-file", str(tmp_path / "none"))
    assert error is not None
    assert "cannot be read" in error.message


def test_who_is_not_enrolled_is_not_told_to_write_a_token_where_others_read_it(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled) as caught:
        credentials.load(Home(tmp_path))
    assert "`fedagent enroll URL`" in caught.value.message
    assert "--token" not in caught.value.message


@pytest.mark.parametrize("page", [Answer.page(200), Answer.page(201), Answer(302, headers={"Location": "https://login.hotel.example/"})])
def test_a_login_page_before_the_coordinator_is_told_as_one(
    page: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda _: page) as server:
        words = ["fedagent", "enroll", server.url, "--home", str(tmp_path), "--token", TOKEN, "--name", "laptop", "--runs", "x"]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert error.startswith(f"error: {server.url} answered {page.status}: is it a coordinator? ")
    assert "a page to log in, of a network or a VPN" in error
    assert error.endswith("[login_page]\n")
    assert not Home(tmp_path).credentials.exists()
    assert not Home(tmp_path).config.exists()


@pytest.mark.parametrize(
    ("words", "columns"), [([], {"text": "sentence"}), (["--column", "text=remark"], {"text": "remark"})], ids=["nothing said", "said"]
)
def test_a_column_of_a_well_known_name_is_mapped_unless_somebody_says_which(
    words: list[str], columns: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"sentence": "a", "remark": "b", "label": 0}\n')
    with serving(coordinator) as server:
        data = ["--data", str(tmp_path / "rows.jsonl"), "--runs", "r"]
        done = CliRunner().invoke(
            cli.app, ["enroll", server.url, "--home", str(tmp_path / "home"), "--token", TOKEN, "--name", "laptop", *data, *words]
        )
    assert done.exit_code == 0, done.output
    assert ("text is read from 'sentence'" in done.output) == (not words)
    assert Home(tmp_path / "home").load_config().data["rows"].columns == columns
