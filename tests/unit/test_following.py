"""What a run shows while somebody follows it: a line a round, or a picture that says how much is left."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest

from fedcybgd.coordinator.commands.following import Lines
from fedcybgd.coordinator.commands.run_view import _progress
from fedcybgd.shared.contract.views import BytesView, EvaluationView, PaceView, RunView
from fedcybgd.shared.host.terminal import Terminal


def view(**said: Any) -> RunView:
    plain = {"rounds_done": 1, "rounds_total": 4, "evaluations": [], "state": "running", "reason": None, "seconds_left": None, "pace": None}
    return RunView.model_construct(**{**plain, "bytes": BytesView(down=2_000_000, up=1_000_000), **said})


def score(after: int, loss: float | None, accuracy: float | None = None) -> EvaluationView:
    return EvaluationView(after_rounds=after, created_at=datetime(2026, 1, 1, tzinfo=UTC), loss=loss, accuracy=accuracy, rows=1, seconds=0)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({}, "  1 of 4 rounds"),
        ({"evaluations": [score(0, None)]}, "  1 of 4 rounds"),
        ({"evaluations": [score(0, 2.5), score(1, None)]}, "  1 of 4 rounds; after 0 rounds: held-out loss 2.5000"),
        ({"evaluations": [score(0, 2.5), score(1, 1.5, 0.25)]}, "  1 of 4 rounds; after 1 round: held-out loss 1.5000, accuracy 25.00%"),
        ({"state": "paused", "reason": "by ann"}, "  1 of 4 rounds; paused: by ann"),
        ({"state": "failed", "reason": "no\nroom"}, "  1 of 4 rounds; failed: no room"),
        ({"state": "draft"}, "  1 of 4 rounds; draft: it has not been started"),
        ({"state": "cancelled"}, "  1 of 4 rounds; cancelled"),
    ],
)  # fmt: skip
def test_a_line_has_the_last_score_that_is_one_and_is_said_once(said: dict[str, Any], line: str) -> None:
    file = io.StringIO()
    lines = Lines(Terminal(file=file, width=200))
    lines.show(view(**said))
    lines.show(view(**said))
    assert file.getvalue() == f"{line}\n"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ({}, ""),
        ({"seconds_left": 90.0}, "about 1.5 min left"),
        ({"seconds_left": 90.0, "pace": PaceView(round_s=1, quiet_s=1, seconds_left=90, still=None)}, "about 1.5 min left"),
        ({"seconds_left": 90.0, "pace": PaceView(round_s=1, quiet_s=900, seconds_left=None, still="nobody is there")}, "stands still"),
        ({"rounds_done": 0, "rounds_total": 0}, ""),
    ],
)  # fmt: skip
def test_nothing_is_foretold_of_a_run_that_stands_still(said: dict[str, Any], left: str) -> None:
    file = io.StringIO()
    Terminal(file=file, width=200, force_terminal=True, color_system=None).print(_progress(shown := view(**said)))
    line = file.getvalue()
    assert line.split(" rounds", 1)[1].split("2 MB down, 1 MB up")[1].strip() == left
    assert ("━" in line) == (shown.rounds_done > 0)
    assert f"{shown.rounds_done} of {shown.rounds_total}" in line
