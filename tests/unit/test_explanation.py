"""Why nobody takes work that waits, of those who wait for work: said only where none of them may have it."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from fedcybgd.coordinator.commands.explain import lines
from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.domain.opening import FIRST, Claimant, Opening
from fedcybgd.coordinator.services.read.explanation import _stands, not_taken
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.explanations import ExplanationView, SymptomView, WaitView
from fedcybgd.shared.contract.versions import ADAPTERS, SPOKEN
from tests.support.hostile import Answer, serving

MOMENT = datetime(2030, 1, 1, 12, tzinfo=UTC)

OPENING = Opening("asg", "run-1", "intents", None, frozenset(), False, None, False, FIRST)
ANN = Claimant("a", "ann", ClaimRequest(runs=["*"]), SPOKEN)


def test_whoever_may_have_it_is_on_the_way() -> None:
    assert not_taken(OPENING, [ANN]) is None
    assert not_taken(OPENING, []) is None, "nobody waits here"
    assert not_taken(replace(OPENING, open_to=frozenset({"bob"})), [ANN]) is None, "it is nothing to her"


def test_the_owner_has_not_consented() -> None:
    other = replace(ANN, request=ClaimRequest(runs=["bank-*"]))
    found = not_taken(OPENING, [other])
    assert found is not None
    assert "ann waits for work, but not of this run" in found[0]
    assert 'runs = ["intents"]' in found[1]
    assert not_taken(OPENING, [other, replace(ANN, id="b", name="bob")]) is None


def test_nobody_speaks_the_protocol() -> None:
    found = not_taken(replace(OPENING, needs=ADAPTERS), [replace(ANN, speaks=FIRST)])
    assert found is not None
    assert "ann (1.0)" in found[0]
    assert "update" in found[1]


@pytest.mark.parametrize(
    ("done", "said"),
    [(1, "1 of 2 rounds is done, and round 1 is under way: 1 in the engine"),
     (2, "all 2 rounds are done, and it ends once its model is made and scored: 1 in the engine")],
)  # fmt: skip
def test_where_all_rounds_are_done_no_other_is_under_way(done: int, said: str) -> None:
    run = Run(state="running", rounds_done=done, rounds_total=2)
    assert _stands(Session(), run, [WaitView(kind="job", text="the engine is at `conclude`")]) == (said, None)


@pytest.mark.parametrize(("state", "said"), [("running", ["it waits for nothing"]), ("paused", []), ("completed", [])])
def test_only_what_goes_on_can_wait_for_nothing(state: str, said: list[str]) -> None:
    view = ExplanationView(
        id="run_1", run="r", state=state, since=None, text="t", advice="do", rounds_done=0, rounds_total=2, waits=[], symptoms=[]
    )
    assert [text.plain for _, text in lines(view) if "waits" in text.plain] == said


def test_what_is_read_by_a_program_has_each_line_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fedcybgd.coordinator.commands import explain

    wait = WaitView(kind="lease", text="ann trains layers.0, " + "far " * 60, advice="`fedcoord run resume intents`", until=MOMENT)
    symptom = SymptomView(code="agents_fail", level="warning", evidence="bob: 3 × stalled", advice="mend " * 50, threshold="two")
    view = ExplanationView(
        id="run_1", run="intents", state="running", since=MOMENT, text="it goes on", advice=None, rounds_done=0, rounds_total=2, waits=[wait],
        symptoms=[symptom],
    )  # fmt: skip
    with serving(lambda _: Answer(body=view.model_dump_json().encode())) as server:
        monkeypatch.setenv("FEDCOORD_URL", server.url)
        explain.explain("intents")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "intents is running since 2030-01-01T12:00:00 UTC: it goes on"
    assert lines[2].startswith("  ann trains layers.0")
    assert lines[2].endswith("; its lease ends unless it is renewed: 2030-01-01T12:00:00 UTC")
    assert lines[3] == "      → `fedcoord run resume intents`"
    assert lines[-1] == "      → " + ("mend " * 50).strip()
