"""How a classifier fares label by label stands where its scores stand, a part at a time."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedcybgd import Client
from fedcybgd.coordinator.cli import app
from tests.integration.test_measurements import ROWS, held_out
from tests.support.browser import logged_in
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, finish, operator, refused, settled, start_run


@pytest.mark.parametrize("names", [None, ["<b>lost", "found", "late"]], ids=["numbers", "names"])
def test_labels_are_looked_at_one_by_one(live: LiveCoordinator, model: str, tmp_path: Path, names: list[str] | None) -> None:
    hand, client = Hand(live), Client(live.url, live.operator_key)
    task = {"kind": "text-classification", "labels": names or 3, "max_length": 32}
    name = start_run(live, model, [hand], evaluate=held_out(live, tmp_path, "end"), task=task)
    finish(live, name, [hand])
    view = settled(live, name)
    score = view["evaluations"][-1]
    found = client.runs.label_scores(name, score["after_rounds"], order="label")
    assert [one.rows for one in found.scores] == [sum(row["label"] == label for row in ROWS) for label in range(3)]
    assert sum(one.right for one in found.scores) == round(score["accuracy"] * len(ROWS))
    assert [one.name for one in found.scores] == (names or [None] * 3)
    worst = client.runs.label_scores(name, score["after_rounds"], skip=1, limit=1)
    assert (worst.labels, len(worst.scores)) == (3, 1)
    assert worst.scores[0].recall == sorted(one.recall or 0.0 for one in found.scores)[1]
    assert [one["label"] for one in view["worst_labels"]] == [
        one.label for one in client.runs.label_scores(name, score["after_rounds"]).scores
    ]

    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key, "COLUMNS": "100"}
    shown = CliRunner().invoke(app, ["run", "scores", name, "--labels"], env=environment)
    assert shown.exit_code == 0, shown.output
    assert f"after {score['after_rounds']} rounds; 3 of 3 labels" in shown.output
    assert f"{found.scores[0].rows:,}" in shown.output
    whole = CliRunner().invoke(app, ["run", "scores", name], env=environment)
    assert f"{score['loss']:.4f}" in whole.output
    page = logged_in(live).get(f"/admin/runs/{name}").text
    assert "Labels with the lowest recall" in page
    assert "<b>lost" not in page


def test_what_was_not_scored_has_no_labels(live: LiveCoordinator, model: str) -> None:
    hand = Hand(live)
    name = start_run(live, model, [hand])
    refused(operator(live).get(f"/runs/{name}/evaluations/0/labels"), 404, "not_found")
    refused(operator(live).get(f"/runs/{name}/evaluations/0/labels", params={"limit": 1001}), 422, "invalid_request")
    live.operator.post(f"/runs/{name}/cancel")
