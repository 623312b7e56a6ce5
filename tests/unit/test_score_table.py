"""Scores are said so that people can read them: a line each in 80 columns, no word broken, no number that means nothing."""

from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest

from fedcybgd.coordinator.commands.score_table import scores
from fedcybgd.shared.contract.measured import HeadCalibrationScores, Score, Spent
from fedcybgd.shared.contract.views import EvaluationView
from fedcybgd.shared.host.terminal import Terminal

KINDS: dict[str, dict[str, Any]] = {
    "labels": {"accuracy": 0.515, "accuracy_error": 0.0353, "macro_f1": 0.436, "matthews": -0.034},
    "answers": {"accuracy": None, "f1": 0.3138, "f1_error": 0.0112, "exact_match": 0.25, "exact_match_error": 0.0122},
    "text": {"accuracy": None, "bits_per_byte": 3.119},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_score_is_a_line_in_80_columns(kind: str) -> None:
    made = [
        EvaluationView(
            after_rounds=rounds, created_at=datetime(2026, 1, 1, tzinfo=UTC), rows=200, seconds=1.0, loss=2.6931, loss_error=0.0105,
            spent=Spent(bytes_down=1_234_000_000, bytes_up=0, tokens=27_030_123, seconds=7260), **KINDS[kind],
        )
        for rounds in (0, 128)
    ]  # fmt: skip
    for way in ("print", "table"):
        out = StringIO()
        getattr(Terminal(file=out, width=80), way)(scores(made))
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        assert max(map(len, lines)) <= 80, lines
        assert {"rounds", "loss", "MB", "tokens", "minutes"} <= {word for line in lines[:2] for word in line.split()}, lines
        assert [line.split()[0] for line in lines[2:5]] == ["0", "128", "±"], lines


@pytest.mark.parametrize(("temperature", "said"), [(2.5, "with temperature 2.5 "), (1e6, "to say the same of every row")])
def test_a_temperature_that_leaves_nothing_is_no_number(temperature: float, said: str) -> None:
    score = Score(loss=0.7, accuracy=0.5, rows=200, seconds=1.0)
    for kept in (True, False):
        words = HeadCalibrationScores(temperature=temperature, kept=kept, before=score, after=score).in_words()
        assert said in words
        assert "e+" not in words
