"""`fedcoord explain`."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.completing import Run
from fedcybgd.coordinator.commands.output import Json, moment, say_json
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.shared.contract.explanations import ExplanationView
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.host.terminal import Terminal

terminal = Terminal()
ADVICE = 6
"""How far in it stands"""
STYLES = {"alarm": "red", "warning": "yellow", "note": "dim"}


def explain(
    run: Run,
    as_json: Json = False,
) -> None:
    """Where a run stands and why: what it waits for, what is unusual about it, and what helps."""
    view = Client().runs.explain(run)
    if as_json:
        say_json(ExplanationView, view)
    elif terminal.is_terminal:
        terminal.print(draw(view))
    else:
        for indent, text in lines(view):
            terminal.say(" " * indent + text.plain)


def draw(view: ExplanationView) -> RenderableType:
    """The answer of `GET /v1/runs/{run}/explanation` for people: what goes on in the next line is as far in."""
    return Group(*(Padding(text, (0, 0, 0, indent)) for indent, text in lines(view)))


def lines(view: ExplanationView) -> Iterator[tuple[int, Text]]:
    """Each with how far it is in, and as long as it is."""
    since = f" since {moment(view.since)} UTC" if view.since else ""
    yield 0, Text.assemble((view.run, "bold"), f" is {view.state}{since}: {one_line(view.text)}")
    if view.advice:
        yield ADVICE, _advice(view.advice)
    if view.waits or view.state == RunState.RUNNING:  # of others it has been said what must happen
        yield 0, Text("it waits for:" if view.waits else "it waits for nothing")
    for wait in view.waits:
        ends = {"lease": "its lease ends unless it is renewed", "agent": "anybody may stand in from then on"}.get(wait.kind, "until")
        yield 2, Text(one_line(wait.text) + (f"; {ends}: {moment(wait.until)} UTC" if wait.until else ""))
        if wait.advice:
            yield ADVICE, _advice(wait.advice)
    yield 0, Text("what is unusual:") if view.symptoms else Text("nothing about it is unusual", "dim")
    for symptom in view.symptoms:
        yield 2, Text.assemble((f"{symptom.level} ", STYLES[symptom.level]), f"{symptom.code}: {one_line(symptom.evidence)}")
        yield ADVICE, Text(f"(counts from: {symptom.threshold})", "dim")
        yield ADVICE, _advice(symptom.advice)


def _advice(text: str) -> Text:
    return Text(f"→ {one_line(text)}")
