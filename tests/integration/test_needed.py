"""The collector takes nothing that anybody needs: each kind of need by itself, long after its blobs were written."""

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import fedcybgd.coordinator.engine.evaluate
import fedcybgd.coordinator.engine.export
from fedcybgd import Client
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.sweeper import tidy
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, run_file, settled

ROWS = [{"text": f"my card is {word}", "label": i % 3} for i, word in enumerate(("lost", "stolen", "not working", "new"))]


def after_hours(live: LiveCoordinator, *hours: float) -> None:
    """What is garbage is marked at the first of these and deleted at the next, an hour later or more."""
    for hour in hours:
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=hour))


def stored(live: LiveCoordinator) -> set[str]:
    return {digest for digest, _ in live.store.stored()}


@pytest.fixture
def live(coordinators: Callable[..., LiveCoordinator], bert: Path) -> LiveCoordinator:
    made = coordinators()
    made.add_model("bert", bert)
    return made


def held_out(live: LiveCoordinator, folder: Path) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"held_out": path.name, "digest": Client(live.url, live.operator_key).runs.upload_held_out(path), "every": "round"}


def head(live: LiveCoordinator, run: str) -> str:
    return next(str(b["digest"]) for b in live.operator.get(f"/runs/{run}")["blocks"] if b["name"] == "head")


def test_a_model_that_no_run_uses_stays_whole(live: LiveCoordinator) -> None:
    before = stored(live)
    assert len(before) > 5
    after_hours(live, 2, 4, 6)
    assert stored(live) == before


def test_a_held_out_file_that_no_run_names_yet_stays(live: LiveCoordinator, tmp_path: Path) -> None:
    digest = held_out(live, tmp_path)["digest"]
    after_hours(live, 2, 4, 6)
    assert live.store.has(digest)


@pytest.mark.parametrize("ended", [False, True])
def test_the_files_and_blocks_of_a_run_stay_also_when_it_has_ended(live: LiveCoordinator, ended: bool) -> None:
    run = live.create_run(run_file("bert", "all"))["name"]
    settled(live, run)
    if ended:
        live.operator.post(f"/runs/{run}/cancel")
    before = stored(live)
    after_hours(live, 2, 4, 6)
    assert head(live, run) in stored(live)
    assert {f.digest for f in _files(live, run)} <= stored(live)
    made = live.operator.post(f"/runs/{run}/exports")["export_id"]
    assert wait_for(lambda: live.operator.get(f"/runs/{run}/exports/{made}")["ready"])
    assert before <= stored(live)


def _files(live: LiveCoordinator, run: str) -> list[Any]:
    from fedcybgd.coordinator.db import queries

    with live.database.reading() as session:
        return list(queries.run_by_name(session, run).files)


def test_an_export_stays_for_a_day(live: LiveCoordinator) -> None:
    run = live.create_run(run_file("bert", "all"))["name"]
    made = live.operator.post(f"/runs/{run}/exports")["export_id"]
    files = wait_for(lambda: (v := live.operator.get(f"/runs/{run}/exports/{made}"))["ready"] and v)["files"]
    weights = next(f["digest"] for f in files if f["name"] == "model.safetensors")
    after_hours(live, 2, 4, 22)
    assert {f["digest"] for f in files} <= stored(live)
    after_hours(live, 25, 27)
    assert not live.store.has(weights)


def test_what_an_unfinished_job_works_from_stays(live: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export is of the moment it was asked for; it waits for its turn, and when that comes the model has long gone on."""
    gates = {name: threading.Event() for name in ("evaluate", "export")}
    begun = threading.Event()

    def held(module: Any, name: str) -> None:
        real = getattr(module, name)

        def when_opened(*arguments: Any) -> Any:
            if name == "export":
                begun.set()
            assert gates[name].wait(60)
            return real(*arguments)

        monkeypatch.setattr(module, name, when_opened)

    held(fedcybgd.coordinator.engine.evaluate, "evaluate")
    held(fedcybgd.coordinator.engine.export, "export")
    hand = Hand(live)
    spec = run_file("bert", [hand], evaluate=held_out(live, tmp_path) | {"every": 2}, schedule={"cycles": 2})
    run = live.create_run(spec)["name"]
    first = head(live, run)
    live.operator.post(f"/runs/{run}/start")
    made = live.operator.post(f"/runs/{run}/exports")["export_id"]
    try:
        hand.deliver(hand.take(run))
        assert hand.take(run).block == "layers.1"
        assert head(live, run) != first, "nobody needs it but the export"
        after_hours(live, 2)
        gates["evaluate"].set()
        assert begun.wait(30)
        after_hours(live, 4, 6)
        assert live.store.has(first)
    finally:
        for gate in gates.values():
            gate.set()
    assert wait_for(lambda: live.operator.get(f"/runs/{run}/exports/{made}")["ready"])
    live.operator.post(f"/runs/{run}/cancel")
    settled(live, run)
    forgetful(live)
    after_hours(live, 8, 10)
    assert not live.store.has(first)


def test_a_delta_stays_until_it_is_applied(live: LiveCoordinator) -> None:
    hands = [Hand(live), Hand(live)]
    run = live.create_run(run_file("bert", hands, schedule={"wave": 2}), start=True)["name"]
    digest = hands[0].deliver(hands[0].take(run)).digest
    settled(live, run)
    after_hours(live, 2, 4, 6)
    assert live.store.has(digest), "its round waits for the other one"
    hands[1].deliver(hands[1].take(run))
    assert settled(live, run)["rounds_done"] == 1
    after_hours(live, 8, 10)
    assert live.store.has(digest), "of the history"
    forgetful(live)
    after_hours(live, 12, 14)
    assert not live.store.has(digest)


def forgetful(live: LiveCoordinator, rounds: int = 0) -> None:
    live.settings.keep_versions = rounds


def exact(live: LiveCoordinator, run: str) -> dict[str, str]:
    return {str(b["name"]): str(b["digest"]) for b in live.operator.get(f"/runs/{run}")["blocks"]}


def test_of_a_history_its_beginning_and_all_deltas_stay_and_no_version_between(live: LiveCoordinator) -> None:
    hand = Hand(live)
    run = live.create_run(run_file("bert", [hand], seed=7, schedule={"cycles": 2}))["name"]
    models, deltas = [exact(live, run)], []
    live.operator.post(f"/runs/{run}/start")
    for _ in range(4):
        deltas.append(hand.deliver(hand.take(run)).digest)
        settled(live, run)
        models.append(exact(live, run))
    assert settled(live, run)["state"] == "completed"
    after_hours(live, 2, 4, 6)
    assert {*deltas, *models[0].values(), *models[-1].values()} <= stored(live)
    assert not {m["head"] for m in models[1:-1]} & stored(live), "they can be made again"


def test_no_more_of_a_history_stays_than_it_takes_to_go_back_by_some_rounds(live: LiveCoordinator) -> None:
    """Looked at after every round. The bytes of whole models are as many rounds apart as are to be kept."""
    forgetful(live, 2)
    hand = Hand(live)
    run = live.create_run(run_file("bert", [hand], seed=8, schedule={"cycles": 4}))["name"]
    fresh_head, deltas = exact(live, run)["head"], []
    live.operator.post(f"/runs/{run}/start")
    for number in range(7):
        deltas.append(hand.deliver(hand.take(run)).digest)
        settled(live, run)
        after_hours(live, 6 * number + 2, 6 * number + 4, 6 * number + 6)
        there = [digest in stored(live) for digest in deltas]
        assert all(there[-2:]), there
        assert sum(there) <= 4, there
    assert fresh_head not in stored(live)
    live.operator.post(f"/runs/{run}/cancel")
