"""Follows a run until it ends: a picture on a terminal, a line whenever a round is done elsewhere."""

import time
from collections.abc import Callable

from rich.live import Live
from rich.text import Text

from fedcybgd.client.client import Client
from fedcybgd.client.runs import has_ended
from fedcybgd.coordinator.commands.run_view import draw
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import RunView
from fedcybgd.shared.host.terminal import Terminal

EVERY_S = 0.5


def followed(
    client: Client, run: str, terminal: Terminal, look: Callable[[RunView], None] = lambda _: None, away_s: float | None = None
) -> RunView:
    """The run, once it has ended and everything is measured. `look` sees it each time, and may raise.

    A coordinator that has answered before is waited for so many seconds when it is away.
    """
    if terminal.is_terminal:
        with Live(console=terminal, refresh_per_second=4) as live:
            client.connection.notice = lambda text: live.update(Text(text, "yellow"))
            return _until_the_end(client, run, away_s, look, lambda view: live.update(draw(view)))
    client.connection.notice = lambda text: terminal.say(text)
    return _until_the_end(client, run, away_s, look, Lines(terminal).show)


def _until_the_end(
    client: Client, run: str, away_s: float | None, look: Callable[[RunView], None], show: Callable[[RunView], None]
) -> RunView:
    while True:
        view = client.connection.patiently(lambda: client.runs.get(run), limit=away_s)
        look(view)
        show(view)
        if has_ended(view):
            return view
        time.sleep(EVERY_S)


class Lines:
    """One line for each number of rounds and each score."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._said: str | None = None

    def show(self, view: RunView) -> None:
        score = next((e for e in reversed(view.evaluations) if e.loss is not None), None)
        text = f"{view.rounds_done:>3} of {view.rounds_total} rounds"
        if score is not None:
            accuracy = "" if score.accuracy is None else f", accuracy {score.accuracy:.2%}"
            text += f"; after {counted(score.after_rounds, 'round')}: held-out loss {score.loss:.4f}{accuracy}"
        if view.state != "running":
            reason = "it has not been started" if view.state == "draft" else view.reason
            text += f"; {view.state}{f': {one_line(reason)}' if reason else ''}"
        if text != self._said:
            self._said = text
            self._terminal.say(text)
            self._terminal.file.flush()
