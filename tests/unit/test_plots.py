"""Pictures of runs beside each other have the numbers of their scores, in the units that they name."""

import os
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from fedcybgd.client.errors import PackageMissing
from fedcybgd.client.plots import draw
from fedcybgd.shared.contract.measured import Score, Spent
from fedcybgd.shared.contract.run_views import SeriesView
from fedcybgd.shared.contract.views import AnchorView, BytesView, EvaluationView, RunView
from tests.unit.test_client import NOW, RUN

SPENT = [Spent(bytes_down=0, bytes_up=0, tokens=0, seconds=0), Spent(bytes_down=3_000_000, bytes_up=1_000_000, tokens=500, seconds=90)]


@pytest.fixture(autouse=True)
def with_matplotlib(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    if find_spec("matplotlib") is None and "missing" not in request.node.name:
        if os.environ.get("CI"):
            pytest.fail("matplotlib is not installed, and CI must not skip it")
        pytest.skip("matplotlib is not installed: pip install '.[plots]' to run this test")


def score(loss: float, accuracy: float | None) -> Score:
    error = None if accuracy is None else 0.01
    return Score(loss=loss, loss_error=0.1, accuracy=accuracy, accuracy_error=error, rows=9, seconds=1)


def run(name: str, scores: list[Score], number: int = 1, anchor: Score | None = None) -> tuple[RunView, SeriesView]:
    view = RunView.model_validate(RUN | {"name": name, "id": f"run_{number:016}"})
    if anchor is not None:
        view.anchor = AnchorView(id="run_2", name="head", state="completed", rounds_done=3, rounds_total=3, score=anchor)
    found = [
        EvaluationView.model_validate({**dict(one), "after_rounds": 3 * n, "created_at": NOW, "spent": dict(SPENT[n])})
        for n, one in enumerate(scores)
    ]
    return view, SeriesView(spacing=1, evaluations=found, losses=[], bytes=BytesView(down=0, up=0), visits=3, fedavg_bytes=0)


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]) for line in axes.lines}


PLACES = [("rounds", 3, "rounds"), ("bytes", 4, "MB sent and received"), ("tokens", 500, "tokens trained on"), ("time", 1.5, "minutes")]


@pytest.mark.parametrize(("x", "last", "called"), PLACES)
def test_a_classifier_is_drawn_by_its_accuracy_with_its_head_alone(x: Any, last: float, called: str) -> None:
    axes = draw(
        [run("one", [score(2, 0.25), score(1, 0.5)], anchor=score(1, 0.4)), run("two", [score(2, 0.2), score(1, 0.6)])], "quality", x, None
    )
    drawn = lines(axes)
    assert drawn["one"] == ([0, last], [25, 50])
    assert drawn["two"] == ([0, last], [20, 60])
    assert drawn["one: its head alone"][1] == [40, 40]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (called, "held-out accuracy, %")
    [band, _] = axes.collections
    assert sorted({round(float(y), 6) for _, y in band.get_paths()[0].vertices}) == [24, 26, 49, 51]


def test_text_is_drawn_by_its_loss_and_names_that_are_one_are_told_apart() -> None:
    from matplotlib.figure import Figure

    mine = Figure().subplots()
    axes = draw([run("one", [score(2, None), score(1, None)]), run("one", [score(3, None)], 7)], "quality", "rounds", mine)
    assert axes is mine
    assert {name: ys for name, (_, ys) in lines(axes).items()} == {"one run_0000000000000001": [2, 1], "one run_0000000000000007": [3]}
    assert axes.get_ylabel() == "held-out loss, nats"
    assert draw([run("one", [score(2, 0.5)])], "loss", "rounds", Figure().subplots()).get_ylabel() == "held-out loss, nats"
    assert lines(draw([run("nothing", [])], "quality", "bytes", Figure().subplots())) == {"nothing": ([], [])}


def test_where_the_package_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(PackageMissing, match=r"pip install '\.\[plots\]'"):
        draw([run("one", [score(2, 0.5)])], "loss", "rounds", None)
