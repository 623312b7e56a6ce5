"""Runs that end with a calibrated head: fitted once, whatever is killed, told honestly, verified here and by strangers, and left out where it does not help."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import fedcybgd.coordinator.engine.candidates
from fedcybgd import Client
from fedcybgd.coordinator.provenance import check
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.provenance import FILE
from tests.integration.test_endings import completed, digests, expect, is_done
from tests.integration.test_jobs import Stuck, job_states
from tests.support import provenance_checker
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, events, settled, start_run

OF_HEAD = " WHERE block = 'head' AND origin = 'calibrated' AND run_id = (SELECT id FROM run ORDER BY created_at DESC LIMIT 1)"
HEAD = " FROM block_version" + OF_HEAD
pytestmark = pytest.mark.database_decides
assert is_done


def asked(live: LiveCoordinator, folder: Path, rows: int = 24, **more: Any) -> dict[str, Any]:
    """Held-out rows, of which three in four have the first label: who is sure of it is too sure."""
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"my card is lost {'please ' * (i % 5)}", "label": int(i % 4 == 3)}) + "\n" for i in range(rows))
    )
    digest = Client(live.url, live.operator_key).runs.upload_held_out(path)
    evaluate = {"held_out": path.name, "digest": digest, "every": "round"}
    return {"evaluate": evaluate, "admission": {"norm_band": None, "gate": "off"}, "calibrate": True, "schedule": {"cycles": 1}, **more}


ENDS = [{}, {"average_versions": {"last": 1, "keep": "average"}}, {"keep_best": True}]
"""What is calibrated; of the first each database keeps what it is told, the others differ in numbers alone."""


@pytest.mark.parametrize("more", [pytest.param(more, marks=[pytest.mark.one_database] if more else []) for more in ENDS])
def test_a_run_ends_calibrated_and_anybody_can_check_it(
    live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path, more: dict[str, Any]
) -> None:
    run = start_run(live, model, [hand], **asked(live, tmp_path, **more))
    expect(live, hand, run, [9, 30])
    view = settled(live, run)
    ended = view["conclusion"]["calibration"]
    assert (view["state"], ended["kept"]) == ("completed", True)
    assert ended["temperature"] > 3
    assert ended["after"]["loss"] < 1 < ended["before"]["loss"]
    assert ended["after"]["rows"] == ended["before"]["rows"] == 24
    assert "its head is calibrated with temperature" in completed(live, run)
    assert "not_calibrated" not in events(live, run)

    found = verify(live.settings, run)
    target = tmp_path / "export"
    Client(live.url, live.operator_key).runs.export(run, target)
    assert f"calibrated on these held-out rows, with temperature {ended['temperature']:.3g}." in (target / "README.md").read_text()
    (tmp_path / "blobs").mkdir()
    for digest, _ in live.store.stored():
        shutil.copy(live.store.path(digest), tmp_path / "blobs" / digest)
    assert check(target / FILE, export=target, blobs=tmp_path / "blobs").made_again == found.made_again
    assert provenance_checker.check(target / FILE, live.operator.get("/key")["key"], target, tmp_path / "blobs") == found.made_again

    lies = [
        ("calibration = :lie", "version_not_reproduced"),
        ("calibration = NULL", "version_differs"),
        ("parent = parent - 1", "version_differs"),
    ]
    for change, code in lies:
        with live.database.transaction() as session:
            before = session.execute(text("SELECT calibration, parent" + HEAD)).one()
            said = before.calibration if isinstance(before.calibration, dict) else json.loads(before.calibration)
            session.execute(
                text(f"UPDATE block_version SET {change}{OF_HEAD}"), {"lie": json.dumps({**said, "scale": 0.5})} if ":lie" in change else {}
            )
        with pytest.raises(FedError) as wrong:
            verify(live.settings, run)
        assert wrong.value.code == code, change
        with live.database.transaction() as session:
            session.execute(
                text(f"UPDATE block_version SET calibration = :said, parent = :parent{OF_HEAD}"),
                {"said": json.dumps(said), "parent": before.parent},
            )


def test_it_is_made_once_and_the_same_where_the_coordinator_is_killed(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hand = Hand(live)
    values = asked(live, tmp_path)
    run = start_run(live, "bert", [hand], **values)
    stuck = Stuck(monkeypatch, fedcybgd.coordinator.engine.candidates, "conclude")
    expect(live, hand, run, [9, 30])
    assert stuck.began.wait(10)
    live.stop()
    stuck.mend()
    live = coordinators()
    view = settled(live, run)
    stuck.let_go()
    assert view["conclusion"]["calibration"]["kept"]
    assert job_states(live, "conclude") == [("done", 2)]
    hand = Hand(live)
    again = start_run(live, "bert", [hand], **values)
    expect(live, hand, again, [9, 30])
    settled(live, again)
    assert digests(live, again) == digests(live, run)


def test_rounds_that_are_taken_back_meanwhile_are_done_and_calibrated_again(
    live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(live, model, [hand], **asked(live, tmp_path))
    with monkeypatch.context() as patch:
        stuck = Stuck(patch, fedcybgd.coordinator.engine.candidates, "conclude")
        expect(live, hand, run, [9, 30])
        assert stuck.began.wait(10)
        live.operator.post(f"/runs/{run}/rollback", {"after_rounds": 1})
        stuck.let_go()
        view = settled(live, run)
        assert (view["state"], view["rounds_done"], view["conclusion"]) == ("paused", 1, None)
    live.operator.post(f"/runs/{run}/resume")
    expect(live, hand, run, [20])
    assert settled(live, run)["conclusion"]["calibration"]["kept"]
    assert verify(live.settings, run).rounds == 2


@pytest.mark.one_database
@pytest.mark.parametrize("rows", [24, 4])
def test_it_is_left_out_where_it_does_not_help_and_that_is_told(
    live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path, rows: int
) -> None:
    """A model that says what the rows say already, and too few rows."""
    run = start_run(live, model, [hand], **asked(live, tmp_path, rows))
    expect(live, hand, run, [0.0, 0.0] if rows == 4 else [6.0, -6.0])
    view = settled(live, run)
    told = view["conclusion"]["calibration"]
    assert (told is None) == (rows == 4)
    if told is None or not told["kept"]:
        assert "not_calibrated" in events(live, run)
    assert verify(live.settings, run).rounds == 2
