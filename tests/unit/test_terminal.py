"""Text of others stays text: it is no markup, and it does not steer the terminal."""

import ast
import io
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from rich.console import Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedcybgd.coordinator.commands import run_view
from fedcybgd.coordinator.domain.standing import Standing
from fedcybgd.shared.contract.agents import DeviceInfo
from fedcybgd.shared.contract.assignments import Progress, ReturnRequest
from fedcybgd.shared.contract.plain import one_line, plain
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.views import MemberView
from fedcybgd.shared.contract.words import ErrorBody
from fedcybgd.shared.host.plain_streams import speak_plainly
from fedcybgd.shared.host.terminal import PlainFormatter, Terminal

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "a closing tag": ("heap [/red] gone", "heap [/red] gone"),
    "an empty tag": ("[/]", "[/]"),
    "a link": ("[link=https://evil.example]click[/link]", "[link=https://evil.example]click[/link]"),
    "a section's name": ("Map them in [data.columns]", "Map them in [data.columns]"),
    "an emoji code": (":bomb:", ":bomb:"),
    "the clipboard": ("a\x1b]52;c;ZXZpbA==\x07b", "ab"),
    "a title, ended otherwise": ("a\x1b]0;evil\x1b\\b", "ab"),
    "a link of the terminal": ("\x1b]8;;https://evil.example\x07click\x1b]8;;\x07", "click"),
    "an erased screen": ("a\x1b[2J\x1b[1;1Hb", "ab"),
    "colours in one byte": ("a\x9b31mb", "ab"),
    "a command that does not end": ("a\x1b]0;evil", "a0;evil"),
    "a private message": ("a\x1bP1$r evil\x1b\\b", "ab"),
    "a reset": ("a\x1bcb", "ab"),
    "a bell": ("a\x07b", "a\N{REPLACEMENT CHARACTER}b"),
    "a carriage return": ("good\rbad", "good\N{REPLACEMENT CHARACTER}bad"),
    "the other direction": ("a\u202ecod.exe\u2066b\u200f", "acod.exeb"),
    "half a character": ("a\ud83db", "a\N{REPLACEMENT CHARACTER}b"),
    "NUL and DEL": ("a\0b\x7f", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"),
    "a separator of lines": ("a\u2028b", "a b"),
}
each = pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE.keys())


def printed(draw: Any, width: int = 100) -> str:
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, color_system=None, width=width)
    draw(terminal)
    return file.getvalue()


@each
def test_what_steers_is_taken_out(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize("text", ["Ångström\tµ\nline", "نص عربي", "👩‍👩‍👧 ❤️", "日本語", "a—b ‘c’"])
def test_what_is_only_foreign_stays(text: str) -> None:
    assert plain(text) == text


def test_a_list_has_a_line_for_each_entry() -> None:
    assert one_line("first\n2026-01-01 error forged\r\n\tthird") == "first 2026-01-01 error forged third"


@each
@pytest.mark.parametrize("where", ["line", "styled", "cell", "title", "panel", "spinner"])
def test_nothing_steers_wherever_it_is_drawn(text: str, shown: str, where: str) -> None:
    # Rich itself takes out a few characters of a Text, the bell that ends a command among them: what steers is gone all the same.
    table = Table(text, title=text)
    table.add_row(text)
    draw = {
        "line": lambda t: t.say(text), "styled": lambda t: t.say(text, "red"), "cell": lambda t: t.table(table),
        "title": lambda t: t.print(table), "panel": lambda t: t.print(Panel(Text(text), title=Text(text))),
        "spinner": lambda t: t.print(t.status(text).renderable),
    }[where]  # fmt: skip
    out = printed(draw)
    assert not [c for c in out if c != "\n" and not c.isprintable()], out
    assert not set(out) & set("\u202e\u2066\u200f")
    if "[" in shown and "\x1b" not in text:
        assert shown in out


def test_ids_and_names_are_whole_however_narrow_the_terminal_is() -> None:
    table = Table("name", "id", "model", "state")
    table.add_row("n" * 20, "run_0123456789abcdef", "m" * 50, "running")
    out = printed(lambda t: t.table(table))
    assert "n" * 20 in out
    assert "run_0123456789abcdef" in out
    assert out.count("m") == 50 + 2  # with those of the heading
    table.add_row("N" * 100, "run_0123456789abcdef", "", "")
    out = printed(lambda t: t.table(table))
    assert "…" not in out
    assert out.count("N") == 100


def test_a_row_is_lines_where_its_words_would_be_broken() -> None:
    table = Table("name", "id", "state", "created", "why")
    for name in ("one", "two"):
        table.add_row(name, "run_0123456789abcdef", "completed", "2026-11-28T05:57:27", "")
    wide, narrow = (printed(lambda t: t.table(table), width) for width in (90, 60))
    assert wide.count("completed") == narrow.count("completed") == 2
    assert "created: 2026-11-28T05:57:27" in narrow
    assert "why" not in narrow, "there is nothing in it"
    assert "┃" in wide
    assert "┃" not in narrow


@pytest.mark.parametrize("inside", [lambda t: t, Group, lambda t: Panel(Padding(Group(t), 0))], ids=["alone", "group", "panel"])
def test_nothing_is_cut_in_a_table_wherever_it_stands(inside: Any) -> None:
    grid = Table.grid()
    grid.add_row("G" * 90, "N" * 90)
    table = Table("label", "accuracy")
    table.add_row("G" * 90, "N" * 90)
    for drawn in (grid, table):
        out = printed(lambda terminal, drawn=drawn: terminal.print(inside(drawn)))
        assert "…" not in out
        assert (out.count("G"), out.count("N")) == (90, 90)


def test_a_log_is_a_terminal_too() -> None:
    forged = "a\x1b[2Jb\u202e\n2026-01-01 INFO run completed\r\n2026-01-01 INFO more"
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "block %s", (forged,), None)
    first, *others = PlainFormatter("%(message)s").format(record).split("\n")
    assert first == "block ab"
    assert [line[:8] for line in others] == ["    2026"] * 2, "none looks like a line of the log"


def test_what_libraries_print_is_plain_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    for name, stream in said.items():
        monkeypatch.setattr(sys, name, stream)
    speak_plainly()
    speak_plainly()
    sys.stdout.write("a\x1b[2Jb\n")
    try:
        raise ValueError("a tensor called \x1b]0;x\x07y")
    except ValueError:
        traceback.print_exc()
    assert said["stdout"].getvalue() == "ab\n"
    assert said["stderr"].getvalue().endswith("ValueError: a tensor called y\n")


@each
def test_both_sides_strip_at_the_door(text: str, shown: str) -> None:
    if "\ud83d" in text:
        return  # JSON of the wire cannot hold it
    assert DeviceInfo(name=text[:200], kind=text[:20]).name == shown
    assert ReturnRequest(attempt=1, reason="other", message=text).message == shown
    assert ErrorBody(code="x", message=text).message == shown


def test_a_visit_that_says_little_is_drawn() -> None:
    progress = Progress(phase="training", steps=5)
    assert run_view._far(progress) == ", step 0 of 5"
    assert run_view._far(progress.model_copy(update={"loss": 1.0, "tokens_per_s": 1000.0})) == ", step 0 of 5, loss 1.000, 1,000 tokens/s"
    assert run_view._far(Progress(phase="training")) == ", training"


def test_of_a_visit_that_is_over_is_drawn_what_it_came_to() -> None:
    metrics = TrainMetrics(steps=76, rows=300, tokens=1500, loss_first=1.0, loss_last=0.25, seconds=1.0, tokens_per_s=1500.0)
    assert run_view._done(metrics) == ", 76 steps, loss 0.250, 1,500 tokens/s"


def test_every_standing_has_words_of_its_own() -> None:
    said = {
        standing: run_view.members_in_words(
            [MemberView(agent="ann", standing=standing, takes_part=False, reason="too_small", rows=1, exact=True, last_seen_at=None)]
        )[1]
        for standing in Standing
    }
    assert len(set(said.values())) == len(Standing)
    assert said[Standing.NEVER_SEEN] == "  ann: never seen: `fedagent run` was not started there yet"


# ---- the rule, for all code that is there or will be ------------------------------------------------------------------

COMMANDS = [
    path
    for package in ("agent", "coordinator", "shared")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path != ROOT / "shared/host/terminal.py"
]


def offences(tree: ast.AST) -> list[str]:
    """Every way to a terminal, or to markup, that goes round `shared/terminal.py`."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="rich.console", names=names) if "Console" in {n.name for n in names}:
                found.append(f"line {node.lineno}: Console; use Terminal")
            case ast.ImportFrom(module="rich", names=names) if "print" in {n.name for n in names}:
                found.append(f"line {node.lineno}: print of rich; use Terminal")
            case ast.Call(func=ast.Attribute(attr="from_markup" | "secho")):
                found.append(f"line {node.lineno}: {node.func.attr}")  # type: ignore[attr-defined]
            case ast.Call(func=ast.Attribute(value=ast.Name(id="typer"), attr="echo"), args=[argument, *_]) if not (
                isinstance(argument, ast.Call) and ast.unparse(argument.func) == "json.dumps"
            ):
                found.append(f"line {node.lineno}: typer.echo of something else than json.dumps; use Terminal")
            case ast.Call(func=ast.Name(id="print")):
                found.append(f"line {node.lineno}: print; use Terminal")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="logging"), attr="basicConfig")):
                found.append(f"line {node.lineno}: basicConfig; use log_plainly")
            case ast.Call(keywords=keywords):
                for word in keywords:
                    if word.arg in ("markup", "emoji") and not (isinstance(word.value, ast.Constant) and word.value.value is False):
                        found.append(f"line {node.lineno}: {word.arg} is on")
                if isinstance(node.func, ast.Name) and node.func.id == "Panel":
                    titles = [word.value for word in keywords if word.arg in ("title", "subtitle")]
                    found += [
                        f"line {node.lineno}: a panel reads markup in its title" for t in titles if not ast.unparse(t).startswith("Text(")
                    ]
    return found


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_prints_but_through_the_terminal(path: Path) -> None:
    assert offences(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "from rich.console import Console, Group", "print(f'{x}')", "typer.echo(f'{name}')", "console.print(f'[red]{x}[/]', markup=True)",
        "Text.from_markup(x)", "Panel('x', title=name)", "logging.basicConfig(level=1)", "from rich import print", "typer.secho(x)",
    ],
)  # fmt: skip
def test_the_rule_sees_it(code: str) -> None:
    assert offences(ast.parse(code))


@pytest.mark.parametrize("code", ["typer.echo(json.dumps(view, indent=2))", "terminal.say(f'{x}')", "Panel(Text(x), title=Text(x))"])
def test_the_rule_lets_it_pass(code: str) -> None:
    assert not offences(ast.parse(code))
