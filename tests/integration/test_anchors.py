"""An anchor is a run beside another: what its head alone reaches stands where the scores of that one stand."""

from pathlib import Path

from fedcybgd import Client
from fedcybgd.client.comparison import compared
from fedcybgd.coordinator.commands.compare import table
from fedcybgd.coordinator.commands.run_view import draw
from tests.integration.test_measurements import held_out
from tests.support.browser import logged_in
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, finish, operator, refused, settled, start_run
from tests.unit.test_terminal import printed


def test_a_run_is_shown_beside_its_head_alone(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    hand, client = Hand(live), Client(live.url, live.operator_key)
    name = start_run(live, model, [hand], evaluate=held_out(live, tmp_path, "end"), schedule={"cycles": 2})
    finish(live, name, [hand])
    made = client.runs.anchor(name)
    assert (made.name, made.anchor_of, made.rounds_total) == (f"{name}-head", name, 4), "a visit for each of the run's"
    assert [b.name for b in made.blocks if b.trained] == ["head"]
    before = client.runs.get(name).anchor
    assert before is not None
    assert (before.id, before.state, before.score) == (made.id, "draft", None)
    [row] = [line for line in printed(lambda terminal: terminal.print(draw(client.runs.get(name)))).splitlines() if "head alone" in line]
    assert "draft" in row
    refused(operator(live).post(f"/runs/{name}/anchor"), 409, "anchor_there")
    refused(operator(live).post(f"/runs/{made.id}/anchor"), 422, "no_anchor")
    client.runs.start(made.id)
    finish(live, made.name, [hand], scale=0.02)
    settled(live, made.name)
    view = client.runs.get(name)
    assert view.anchor is not None
    assert view.anchor.score is not None
    loss = view.anchor.score.loss
    assert loss is not None
    assert (view.anchor.state, loss) == ("completed", client.runs.get(made.id).evaluations[-1].loss)
    shown = printed(lambda terminal: terminal.print(draw(view)))
    assert "head alone" in shown
    assert f"{loss:.4f}" in shown
    assert "head alone" in logged_in(live).get(f"/admin/runs/{name}").text
    accuracy = f"{view.anchor.score.accuracy:.2%}"
    assert accuracy in printed(lambda terminal: terminal.print(table(compared(client.runs, [name]))))
    client.runs.export(name, tmp_path / "export")
    assert f"| head alone, trained as often | {accuracy}" in (tmp_path / "export" / "README.md").read_text()


def test_another_anchor_follows_one_that_was_cancelled(live: LiveCoordinator, model: str) -> None:
    hand, client = Hand(live), Client(live.url, live.operator_key)
    name = start_run(live, model, [hand])
    first = client.runs.anchor(name)
    client.runs.cancel(first.id)
    second = client.runs.anchor(name)
    found = client.runs.get(name).anchor
    assert found is not None
    assert (found.id, first.name) == (second.id, second.name)
    client.runs.cancel(second.id)
    client.runs.cancel(name)
