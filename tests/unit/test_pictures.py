"""The pictures of pages: what is drawn, and that a name in them is only text."""

import math
import re
from datetime import UTC, datetime, timedelta

import pytest

from fedcybgd.coordinator.dashboard.browser import templates
from fedcybgd.coordinator.dashboard.writing import coded, count, long
from fedcybgd.coordinator.pictures.axis import labels, spread, ticks, written
from fedcybgd.coordinator.pictures.curves import Curve, Level, curves, legend
from fedcybgd.coordinator.pictures.gantt import MOST_LANES, fitted, gantt
from fedcybgd.shared.contract.run_views import EventEntry, PhaseView, VisitView
from fedcybgd.shared.contract.sizes import counted, in_units
from fedcybgd.shared.contract.views import EvaluationView

HOSTILE = "<script>alert('1')</script>\"&"
T = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("low", "high", "at"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (2.71, 4.44, [3, 3.5, 4]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 12000, [0, 5000, 10000])],
)
def test_lines_stand_at_round_numbers(low: float, high: float, at: list[float]) -> None:
    assert ticks(low, high) == at


def test_of_what_is_counted_there_are_no_parts() -> None:
    assert ticks(0, 1, whole=True) == [0, 1]
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert ticks(0, 1000, whole=True) == [0, 200, 400, 600, 800, 1000]


def test_what_is_always_the_same_has_an_axis_too() -> None:
    for values in ([], [0.0], [5.0, 5.0], [math.nan], [-3.0]):
        low, high = spread(values, from_zero=True)
        assert low < high
        assert ticks(low, high)
        assert low == min([0.0, *(v for v in values if math.isfinite(v))]), "no rounds before the first"


@pytest.mark.parametrize(
    "values",
    [[0.0], [0.0, 0.0], [0.0, 100.0], [100.0], [99.98, 100.0], [-1.0, 2.0], [1e-15, 3e-15], [5e-324, 0.0], [1e9, 1e9 + 1e-3], [4.34361, 4.34364],
     [3e38, 1.0], [1e308, -1e308], [12345.1, 12345.9], [1e6, 5e7], [math.nan, math.inf, 0.5]],
)  # fmt: skip
def test_an_axis_goes_no_farther_than_what_there_can_be_and_its_ticks_are_told_apart(values: list[float]) -> None:
    low, high = spread(values, from_zero=False, most=100.0)
    drawn = [value for value in values if abs(value) < 1e300] or [0.0]
    assert low >= min(0.0, *drawn, 0.0), "no loss, and no share, is below 0"
    assert high <= max(100.0, *drawn, 0.0), "no share is above 100 %"
    at = ticks(low, high)
    said = labels(at)
    assert len(at) >= 2
    assert len({*said}) == len(at)
    assert max(map(len, said)) <= 12


def test_numbers_are_short() -> None:
    assert [written(v) for v in (0, 0.25, 12000, 1e-6, 999.5)] == ["0", "0.25", "12,000", "1e-06", "999.5"]
    assert [in_units(v) for v in (None, 12, 2048, 5e6, 2e9)] == ["–", "12 B", "2.0 kB", "5.0 MB", "2.0 GB"]
    assert [counted(v, "round") for v in (0, 1, 1000, 12_000)] == ["0 rounds", "1 round", "1000 rounds", "12,000 rounds"]
    assert [count(v) for v in (None, 5, 9999, 22713216)] == ["–", "5", "9,999", "22.7 M"]
    assert [long(v) for v in (None, 5, 150, 3600, 7200, 200000)] == ["–", "5 s", "2.5 min", "60 min", "2.0 h", "2.3 days"]


def test_a_curve_has_its_points_and_what_it_is_held_against() -> None:
    drawn = curves("Loss", [Curve("a", [(0, 2.0), (1, math.nan), (2, 1.0)])], "rounds", "nats", [Level("before", 2.0)])
    assert drawn.count("<circle") == 2
    assert "before</text>" in drawn
    assert 'role="img" aria-label="Loss"' in drawn
    assert "nan" not in drawn


def test_a_line_has_a_gap_where_a_point_is_no_number() -> None:
    points = [(float(n), math.nan if n == 70 else 1.0 + n) for n in range(150)]
    assert len(re.findall('<path class="line', curves("Loss", [Curve("a", points)], "rounds", "nats"))) == 2
    alone = curves("Loss", [Curve("a", [(0.0, 1.0), (1.0, math.inf)])], "rounds", "nats")
    assert (alone.count("<circle"), alone.count('<path class="line')) == (1, 0)


def test_names_of_lines_are_not_written_over_each_other() -> None:
    levels = [Level("before", 2.0), Level("always", 2.001), Level("head", 1.0)]
    drawn = curves("Loss", [Curve("a", [(0, 2.0), (2, 0.0)])], "rounds", "nats", levels)
    assert re.findall(r'<text class="level"[^>]*>([^<]*)<', drawn) == ["always, before", "head"]
    assert drawn.count('<path class="level"') == 3


def test_the_score_of_the_model_that_a_run_ended_with_is_none_of_its_last_round() -> None:
    said = templates.env.get_template("macros.html").module.anchored  # type: ignore[attr-defined]
    last = EvaluationView(after_rounds=26, created_at=T, rows=9, tokens=9, seconds=1.0, loss=0.25, accuracy=0.97)
    assert "after 26 rounds" in said(None, last)
    assert "as it ended" in said(None, last, None, True)
    assert "after" not in said(None, last, None, True)


def test_a_name_is_shortened_by_its_width() -> None:
    assert [fitted(name) for name in ("berlin", "illinois-3.l", "university-hospital", "W" * 100, "")] == [
        "berlin", "illinois-3.l", "university-ho…", "WWWWWWW…", "",
    ]  # fmt: skip


def test_a_long_curve_is_a_line_alone() -> None:
    drawn = curves("Loss", [Curve("a", [(float(n), float(n)) for n in range(150)])], "rounds", "nats")
    assert "<circle" not in drawn
    assert len(drawn) < 5000


def test_nothing_to_draw_is_said() -> None:
    assert "nothing is measured yet" in curves("Loss", [Curve("a", [])], "rounds", "nats")


def visit(agent: str | None, begins: float, state: str = "accepted", reason: str | None = None, block: str = "layers.0") -> VisitView:
    at = [T + timedelta(seconds=begins + s) for s in (0, 1, 9, 10)]
    kinds = ("waiting", "training", "judging")
    return VisitView(
        id=f"asg_{begins}", run="r", run_id="run_1", round=int(begins), seat=0, blocks=[block], agent=agent, meant_for=None, state=state,
        reason=reason, attempt=1, failures=0, applied=True, phases=[PhaseView(kind=k, begins=b, ends=e) for k, b, e in zip(kinds, at, at[1:], strict=False)],  # type: ignore[arg-type]
        tokens_per_s=None, loss_first=None, loss_last=None, peak_memory_bytes=None,
    )  # fmt: skip


def event(agent: str, at: float) -> EventEntry:
    return EventEntry(
        id=1, at=T + timedelta(seconds=at), level="warning", code="data_invalid", message=HOSTILE, run="r", run_id="run_1", agent=agent
    )


def test_a_lane_an_agent_and_a_bar_a_phase() -> None:
    drawn = gantt([visit("oslo", 20), visit("berlin", 10), visit("oslo", 0)], [], T + timedelta(seconds=40))
    assert drawn.svg.count("<rect") == 9
    lanes = re.findall(r'text-anchor="end">(\w+)<title>', drawn.svg)
    assert lanes == ["berlin", "oslo"]
    assert drawn.left_out == 0
    assert 'class="mark"' not in drawn.svg


def test_what_failed_is_marked() -> None:
    drawn = gantt(
        [visit("oslo", 10, "rejected", "too large"), visit("oslo", 0)], [event("oslo", 5), event("lyon", 5), event("oslo", 500)], T
    )
    assert drawn.svg.count('class="mark"') == 2, "the rejection, and of the events the one of a lane in that time"
    assert "too large" in drawn.svg


def test_a_picture_of_a_thousand_agents_is_bounded() -> None:
    drawn = gantt([visit(f"agent-{n}", n) for n in range(1000)], [], T)
    assert drawn.left_out == 1000 - MOST_LANES
    assert len(drawn.svg) < 60_000
    assert gantt([], [], T).left_out == 0


def test_names_are_text() -> None:
    shown = [
        curves(HOSTILE, [Curve(HOSTILE, [(0, 1), (1, 2)])], HOSTILE, HOSTILE, [Level(HOSTILE, 1)]),
        legend([Curve(HOSTILE, [])]),
        gantt([visit(HOSTILE, 0, "rejected", HOSTILE, HOSTILE)], [event(HOSTILE, 5)], T).svg,
        coded(f"{HOSTILE} `{HOSTILE}`"),
    ]
    for text in shown:
        assert "<script" not in text
        assert "&lt;script&gt;" in text
        assert not re.search(r"style=|\son[a-z]+=", text)


def test_a_command_in_a_sentence_is_one() -> None:
    assert coded("type `fedagent run` there") == "type <code>fedagent run</code> there"
