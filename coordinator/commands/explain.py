"""`fedcoord explain`."""

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.output import Json, moment, say_json
from fedcybgd.shared.contract.explanations import ExplanationView, SymptomView, WaitView
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.host.terminal import Terminal

terminal = Terminal()
STYLES = {"alarm": "red", "warning": "yellow", "note": "dim"}


def explain(
    run: Annotated[str, typer.Argument(help="Name or id of the run.")],
    as_json: Json = False,
) -> None:
    """Where a run stands and why: what it waits for, what is unusual about it, and what helps."""
    view = Client().runs.explain(run)
    if as_json:
        say_json(ExplanationView, view)
    else:
        terminal.print(draw(view))


def draw(view: ExplanationView) -> RenderableType:
    """The answer of `GET /v1/runs/{run}/explanation` for people."""
    since = f" since {moment(view.since)} UTC" if view.since else ""
    parts: list[RenderableType] = [Text.assemble((view.run, "bold"), f" is {view.state}{since}: {one_line(view.text)}")]
    if view.advice:
        parts.append(_advice(view.advice))
    parts.append(Text("it waits for:" if view.waits else "it waits for nothing"))
    for wait in view.waits:
        parts += _wait(wait)
    if view.symptoms:
        parts.append(Text("what is unusual:"))
    for symptom in view.symptoms:
        parts += _symptom(symptom)
    return Group(*parts) if view.symptoms else Group(*parts, Text("nothing about it is unusual", "dim"))


def _wait(wait: WaitView) -> list[RenderableType]:
    ends = {"lease": "its lease ends unless it is renewed", "agent": "anybody may stand in from then on"}.get(wait.kind, "until")
    until = f"; {ends}: {moment(wait.until)} UTC" if wait.until else ""
    lines: list[RenderableType] = [Text(f"  {one_line(wait.text)}{until}")]
    return [*lines, _advice(wait.advice)] if wait.advice else lines


def _symptom(symptom: SymptomView) -> list[RenderableType]:
    return [
        Text.assemble("  ", (f"{symptom.level} ", STYLES[symptom.level]), f"{symptom.code}: {one_line(symptom.evidence)}"),
        Text(f"      (counts from: {symptom.threshold})", "dim"),
        _advice(symptom.advice),
    ]


def _advice(text: str) -> Text:
    return Text(f"      → {one_line(text)}")
