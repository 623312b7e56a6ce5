"""Every command of both programs: how it ends, what it prints for programs, and that its help says what each option is."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fedcybgd.agent import cli as agent_cli
from fedcybgd.coordinator import cli as coordinator_cli
from fedcybgd.shared.contract.model_uploads import ModelUploadEntry
from fedcybgd.shared.contract.operators import AuditEntry, HeldOutView, OperatorView, TokenView
from fedcybgd.shared.contract.run_views import ExportEntry
from fedcybgd.shared.contract.views import AgentView, ExposureView, ModelView, RunSummary
from fedcybgd.shared.contract.words import API
from fedcybgd.shared.host.exits import MEANINGS, Exit
from fedcybgd.shared.host.terminal import Terminal
from tests.support.hostile import Answer, Asked, serving

PROGRAMS = {"fedcoord": coordinator_cli, "fedagent": agent_cli}
WITHOUT_JSON = {
    "fedcoord serve": "it has --ready-file",
    "fedcoord engine": "it works until it is stopped; FEDCOORD_LOG_FORMAT is for programs",
    "fedagent run": "it works until it is stopped; log_format is its own",
    "fedagent serve-cache": "it works until it is stopped; it has metrics",
}
# These need no coordinator and no agent: they do what they are asked, or say what is wrong with the file.
ALONE = {"fedagent policy-file"}
ALSO = {"fedcoord run rollback": ["--best"], "fedcoord run track": ["--tensorboard", "curves"]}
"""What they must be given, though no option by itself is needed"""


def leaves(command: Any, before: str) -> Iterator[tuple[str, Any]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from leaves(child, f"{before} {name}")
        else:
            yield f"{before} {name}", child


COMMANDS = {name: command for program, cli in PROGRAMS.items() for name, command in leaves(typer.main.get_command(cli.app), program)}
every_command = pytest.mark.parametrize("name", COMMANDS)


def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command line."""
    monkeypatch.setattr(sys, "argv", list(words))
    code = 0
    try:
        PROGRAMS[words[0]].main()
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is there: no coordinator answers, no home was ever used."""
    monkeypatch.setenv("FEDCOORD_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FEDCOORD_OPERATOR_KEY", "fco_nobody")
    monkeypatch.setenv("FEDCOORD_HOME", str(tmp_path / "coordinator"))
    monkeypatch.setenv("FEDAGENT_HOME", str(tmp_path / "agent"))
    monkeypatch.delenv("FEDAGENT_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


@every_command
def test_help_ends_with_0_and_says_what_each_option_is(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, out, _ = ended(monkeypatch, capsys, *name.split(), "--help")
    assert code == Exit.DONE
    assert COMMANDS[name].help
    assert [p.opts for p in COMMANDS[name].params if p.param_type_name == "option" and not getattr(p, "help", None)] == []
    assert "--json" in out or name in WITHOUT_JSON
    said = [word for p in COMMANDS[name].params for word in re.findall(r"\S*\[\S+", getattr(p, "help", None) or "")]
    assert [word for word in said if word.replace("\\", "") not in out] == [], "what stands between brackets is taken for a style"


@every_command
def test_what_is_not_understood_ends_with_2(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, out, err = ended(monkeypatch, capsys, *name.split(), "--no-such-option")
    assert (code, out) == (Exit.USAGE, "")
    assert "--no-such-option" in err


@every_command
def test_what_cannot_be_done_ends_with_1_and_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    if name == "fedcoord serve":
        monkeypatch.setenv("FEDCOORD_HOST", "0.0.0.0")  # refused before anything is begun
    json_too = [] if name in WITHOUT_JSON else ["--json"]
    code, out, err = ended(monkeypatch, capsys, *name.split(), *_needed(COMMANDS[name], tmp_path), *ALSO.get(name, []), *json_too)
    if name in ALONE:
        assert code == Exit.DONE
        assert json.loads(out)
        return
    assert code == Exit.FAILED, out + err
    # `fedagent check` says it as findings, the others as an error.
    assert err.startswith("error: ") or [finding["ok"] for finding in json.loads(out)] == [False]
    assert "Traceback" not in err


def _needed(command: Any, folder: Path) -> Iterator[str]:
    """What the command must be given: a file that is there, a role that there is, else a word."""
    given = {"file": folder / "given.yaml", "data": folder / "given.yaml", "directory": folder, "role": "viewer", "task": "causal-lm"}
    (folder / "given.yaml").write_text("name: x\nmodel: x\ntask: {kind: causal-lm}\n")
    for parameter in command.params:
        if parameter.required:
            value = str(given.get(parameter.name, "x"))
            yield from ([parameter.opts[0], value] if parameter.param_type_name == "option" else [value])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_its_version_and_completes_itself(program: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, out, _ = ended(monkeypatch, capsys, program, "--version")
    assert code == Exit.DONE
    assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\S*\n", out)
    code, out, _ = ended(monkeypatch, capsys, program, "--help")
    assert "--install-completion" in out
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    assert f"{program} --install-completion" in page


def test_every_exit_code_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    assert set(MEANINGS) == set(Exit)
    assert [code for code in Exit if f"\n| {int(code)} | " not in page] == []


def test_a_table_that_a_program_reads_has_a_line_for_each_row(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from rich.table import Table

    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("name", "id", "model", "last error")
    table.add_row("n" * 60, "run_0123456789abcdef", "m" * 60, "e " * 60)
    Terminal().table(table)
    rows = [line for line in capsys.readouterr().out.splitlines() if "run_" in line]
    assert len(rows) == 1
    assert "n" * 60 in rows[0]
    assert ("e " * 60).strip() in rows[0]


def run_view(state: str, rounds_done: int) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("reason", "started_at", "ended_at", "seconds_left"))
    empty: dict[str, Any] = {key: [] for key in ("participants", "notes", "files", "blocks", "rounds", "current", "evaluations", "events")}
    return {
        "id": "run_1", "name": "intents", "model": "m", "state": state, "prepared": True, "rounds_done": rounds_done, "rounds_total": 2,
        "created_at": "2030-01-01T00:00:00Z", "spec": {}, "readiness": {}, "bytes": {"down": 0, "up": 0}, "pending_jobs": 0, "failed_measurements": 0,
        **nothing, **empty,
    }  # fmt: skip


def examples(of: Any) -> dict[str, Any]:
    """The JSON of an answer, with an id or a long name wherever there is text."""
    schema = of.model_json_schema()

    def example(name: str, entry: dict[str, Any]) -> Any:
        if "$ref" in entry:
            return filled(schema["$defs"][entry["$ref"].rpartition("/")[2]])
        if "anyOf" in entry:
            return example(name, entry["anyOf"][0])
        if "enum" in entry or "const" in entry:
            return entry.get("const", entry.get("enum", [None])[0])
        if entry.get("format") == "date-time":
            return "2030-01-01T00:00:00Z"
        if entry.get("type") == "array":
            return [example(name, entry["items"])]
        plain: dict[str, Any] = {"integer": 12, "number": 0.5, "boolean": True, "object": {}}
        return plain.get(entry.get("type", "object"), ID if name in ("id", "run_id") else ("x" * 80)[: entry.get("maxLength")])

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        return {name: example(name, entry) for name, entry in part["properties"].items()}

    return filled(schema)


ID = "abc_0123456789abcdef"
LISTS = {
    "run list": (RunSummary, True), "agents list": (AgentView, False), "agents tokens": (TokenView, True), "agents exposure": (ExposureView, True),
    "models list": (ModelView, False), "operators list": (OperatorView, False), "audit list": (AuditEntry, False),
    "held-out list": (HeldOutView, False), "exports list": (ExportEntry, False), "models uploads": (ModelUploadEntry, True),
}  # fmt: skip
"""What is listed, and whether by its id"""
OF = {"exports list": ["intents"]}


def test_every_list_is_known() -> None:
    listing = {name.removeprefix("fedcoord ") for name in COMMANDS if name.endswith(" list")}
    assert listing <= LISTS.keys()


@pytest.mark.parametrize("width", ["50", "120"])
@pytest.mark.parametrize("words", LISTS)
def test_no_list_cuts_an_id_or_a_name(words: str, width: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    kind, by_id = LISTS[words]
    entry = examples(kind) | ({"files": []} if words in OF else {})
    monkeypatch.setenv("COLUMNS", width)
    with serving(lambda _: Answer.json([entry])) as server:
        monkeypatch.setenv("FEDCOORD_URL", server.url)
        code, out, err = ended(monkeypatch, capsys, "fedcoord", *words.split(), *OF.get(words, []))
    assert code == Exit.DONE, err
    assert "…" not in out
    assert not by_id or ID in out
    if "name" in entry:
        assert out.count("x") >= 80, "the name is whole, over as many lines as it takes"


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_watch_goes_on_over_a_restart_of_the_coordinator(how: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """While it is away a proxy says so in its own words, or the coordinator that it stops; nobody answers at all."""
    from fedcybgd.client import connection

    monkeypatch.setattr(connection.time, "sleep", lambda _: None)
    away = [Answer.page(502), Answer.json({"code": "stopping", "message": "it stops", "detail": {}}, 503), Answer(announced=1000)]
    said = [Answer.json(run_view("running", 1)), *away, Answer.json(run_view("running", 1)), *away, Answer.json(run_view("completed", 2))]

    def answer(asked: Asked) -> Answer:
        assert asked.path == f"{API}/runs/intents"
        return said.pop(0)

    with serving(answer) as server:
        monkeypatch.setenv("FEDCOORD_URL", server.url)
        code, out, err = ended(monkeypatch, capsys, "fedcoord", "run", "watch", "intents", *how)
    assert (code, said) == (Exit.DONE, []), err
    if how:
        assert [json.loads(line)["rounds_done"] for line in out.splitlines()] == [1, 2]
    else:
        assert [line.split(" rounds")[0].strip() for line in out.splitlines()[:5] if " of " in line] == ["1 of 2", "2 of 2"], "as they come"
        assert out.count("waiting for it") == 2


def test_a_variable_that_is_none_of_the_agents_is_told_of_beside_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDAGENT_HOM", str(tmp_path))
    monkeypatch.setenv("FEDAGENT_SERVICE_HOST", "10.0.0.7")
    _, out, err = ended(monkeypatch, capsys, "fedagent", "policy-file", "--home", str(tmp_path / "home"), "--json")
    assert json.loads(out)["file"]
    assert err == "warning: FEDAGENT_HOM is no setting, and has no effect; FEDAGENT_HOME is one\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fedcoord run rollback r abc", "must be a whole number"),
        ("fedcoord run create /dev/null --watch", "add --start"),
        ("fedcoord agents token --uses 0", "must be 1 or more"),
        ("fedcoord operators add x --role boss", "'boss' is not one of 'viewer', 'operator', 'owner'."),
        ("fedagent run --page x", "must be a whole number"),
        ("fedcoord init --task causal-lm --data /dev/null --model ./nowhere", "--model ./nowhere: there is no directory of that name"),
        ("fedcoord init --task causal-lm --data /dev/null --model . --labels 3", "--labels: causal-lm has no labels"),
        ("fedcoord predict ./nowhere --data /dev/null", "./nowhere: there is no directory of that name"),
        ("fedcoord models upload ./nowhere", "'./nowhere' does not exist"),
        ("fedagent enroll http://127.0.0.1:1 --column text", "--column text: say FIELD=COLUMN"),
        ("fedagent serve-cache http://127.0.0.1:1 --tls-key k", "go together"),
    ],
)
def test_what_is_wrong_with_an_option_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    code, _, err = ended(monkeypatch, capsys, *words.split())
    assert code == 2
    assert said in err
    assert "Input should" not in err
    assert "Value error" not in err
