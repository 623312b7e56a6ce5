"""A run's model is what its log says: verified on the live home and on a backup; each fault that is planted is named."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.coordinator.backup import backup
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.errors import FedError
from tests.integration.test_measurements import held_out
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, settled, start_run


def play(live: LiveCoordinator, model: str, **more: Any) -> str:
    """The name of a run of four rounds of two seats, done by two agents."""
    hands = [Hand(live), Hand(live)]
    run = start_run(live, model, hands, **{"schedule": {"cycles": 2, "wave": 2}, **more})
    while live.state_of(run) == "running":
        for hand in hands:
            if (assignment := hand.claim(run, wait=0.2)) is not None:
                hand.deliver(assignment)
    settled(live, run)
    return run


@pytest.mark.database_decides
def test_an_untouched_run_is_what_its_log_says_also_when_old_versions_are_gone(live: LiveCoordinator, model: str) -> None:
    run = play(live, model)
    found = verify(live.settings, run)
    assert (found.versions, found.made_again, found.deltas, found.rounds) == (5 + 2 * 3, 2 * 3, 4, 2)
    tidy(live.settings, live.database, live.store, settled_long_ago(live, 2))
    tidy(live.settings, live.database, live.store, settled_long_ago(live, 4))
    later = verify(live.settings, run)  # of a coordinator that others of these tests have used: its audit log may have grown
    assert later.acts >= found.acts
    assert replace(later, acts=found.acts, last_hash=found.last_hash) == found
    assert verify(live.settings, run, quick=True).made_again == 0


def settled_long_ago(live: LiveCoordinator, hours: int) -> Any:
    from datetime import timedelta

    from fedcybgd.coordinator.db.base import utcnow

    return utcnow() + timedelta(hours=hours)


def test_a_run_under_way_is_verified_too(live: LiveCoordinator, model: str) -> None:
    hands = [Hand(live), Hand(live)]
    run = start_run(live, model, hands, schedule={"cycles": 2, "wave": 2})
    assert verify(live.settings, run).made_again == 0
    for hand in hands:
        hand.deliver(hand.take(run))
    settled(live, run)
    hands[0].take(run)
    assert verify(live.settings, run).rounds == 1
    live.operator.post(f"/runs/{run}/cancel")


def test_the_order_of_a_run_by_importance_is_measured_again(live: LiveCoordinator, model: str, tmp_path: Path) -> None:
    schedule = {"cycles": 2, "wave": 2, "order": "importance"}
    run = start_run(live, model, [Hand(live), Hand(live)], schedule=schedule, evaluate=held_out(live, tmp_path, "end"))
    assert verify(live.settings, run).versions == 5
    with live.database.transaction() as session:
        blocks = queries.blocks_of(session, queries.run_by_name(session, run).id)
        known = {block.name: block.importance for block in blocks if block.importance is not None}
        assert set(known) == {"layers.0", "layers.1"}
        next(block for block in blocks if block.name == "layers.1").importance = known["layers.1"] * 1.01
    with pytest.raises(FedError, match=r"layers\.1") as refused:
        verify(live.settings, run)
    assert refused.value.code == "importance_not_reproduced"
    live.operator.post(f"/runs/{run}/cancel")


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> tuple[Path, str]:
    """A backup of a coordinator that has done a run, and the run's name."""
    home = tmp_path_factory.mktemp("done")
    live = LiveCoordinator(home / "home")
    live.add_model("bert", bert)
    run = play(live, "bert", name=fresh("verified"))
    live.stop()
    backup(live.settings, home / "backup")
    return home / "backup", run


@pytest.fixture
def copy(done: tuple[Path, str], tmp_path: Path) -> tuple[Settings, str]:
    """A copy to be spoilt."""
    shutil.copytree(done[0], tmp_path / "copy")
    return Settings(home=tmp_path / "copy"), done[1]


def test_a_backup_is_verified_as_the_home_is(copy: tuple[Settings, str]) -> None:
    before = {path: path.read_bytes() for path in copy[0].blobs.rglob("*") if path.is_file()}
    assert verify(*copy).made_again == 6
    assert {path: path.read_bytes() for path in copy[0].blobs.rglob("*") if path.is_file()} == before


def rows(settings: Settings, query: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(settings.home / "coordinator.db")) as connection, connection:
        return connection.execute(query, values).fetchall()


def change(settings: Settings, block: str, version: int) -> Any:
    ((text,),) = rows(settings, "SELECT change FROM block_version WHERE block = ? AND version = ?", block, version)
    return json.loads(text)


def change_to(settings: Settings, block: str, version: int, value: object) -> None:
    rows(settings, "UPDATE block_version SET change = ? WHERE block = ? AND version = ?", json.dumps(value), block, version)


def blob(settings: Settings, digest: str) -> Path:
    return settings.blobs / digest[:2] / digest


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flipped_delta(settings: Settings) -> str:
    digest: str = change(settings, "layers.1", 1)["terms"][0]["digest"]
    flip(blob(settings, digest))
    return digest


def missing_delta(settings: Settings) -> str:
    digest: str = change(settings, "layers.1", 1)["terms"][0]["digest"]
    blob(settings, digest).unlink()
    return digest


def missing_beginning(settings: Settings) -> str:
    ((digest,),) = rows(settings, "SELECT digest FROM block_version WHERE block = 'head' AND version = 0")
    blob(settings, digest).unlink()
    return "block head, version 0"


def torn_present(settings: Settings) -> str:
    ((digest,),) = rows(settings, "SELECT digest FROM block WHERE name = 'head'")
    blob(settings, digest).write_bytes(blob(settings, digest).read_bytes()[:-1])
    return "block head, version 2"


def other_weight(settings: Settings) -> str:
    value = change(settings, "head", 1)
    value["terms"][0]["rows"] = [1.5 * weight for weight in value["terms"][0]["rows"]]  # of each label's row
    change_to(settings, "head", 1, value)
    return "block head, version 1"


def twice_in_a_version(settings: Settings) -> str:
    value = change(settings, "layers.1", 1)
    value["terms"].append(value["terms"][0])
    change_to(settings, "layers.1", 1, value)
    return "block layers.1, version 1"


def twice_in_a_history(settings: Settings) -> str:
    """As if round 1 had added the delta of round 0 once more: its visit is of round 0."""
    value = change(settings, "layers.1", 2)
    value["terms"] = change(settings, "layers.1", 1)["terms"]
    change_to(settings, "layers.1", 2, value)
    return "block layers.1, version 2"


def left_out(settings: Settings) -> str:
    value = change(settings, "head", 2)
    gone = value["terms"].pop()
    change_to(settings, "head", 2, value)
    return str(gone["visit"])


def other_digest(settings: Settings) -> str:
    rows(settings, "UPDATE block_version SET digest = ? WHERE block = 'head' AND version = 1", "0" * 64)
    return "block head, version 2"  # whose parent it is


def gap(settings: Settings) -> str:
    rows(settings, "DELETE FROM block_version WHERE block = 'head' AND version = 1")
    return "block head, version 1"


def older_present(settings: Settings) -> str:
    ((digest,),) = rows(settings, "SELECT digest FROM block_version WHERE block = 'head' AND version = 1")
    rows(settings, "UPDATE block SET version = 1, digest = ? WHERE name = 'head'", digest)
    return "block head"


def unapplied_visit(settings: Settings) -> str:
    rows(settings, "UPDATE assignment SET applied = 0 WHERE round = 1 AND seat = 0")
    return "round 1"


def foreign_delta(settings: Settings) -> str:
    rows(settings, "UPDATE assignment SET delta_digest = ? WHERE round = 1 AND seat = 0", "0" * 64)
    return "version 2"


def open_round(settings: Settings) -> str:
    rows(settings, "UPDATE round SET state = 'open' WHERE number = 1")
    return "round 1"


def more_done(settings: Settings) -> str:
    rows(settings, "UPDATE run SET rounds_done = 3")
    return "round 2"


def changed_act(settings: Settings) -> str:
    rows(settings, "UPDATE audit SET outcome = 'refused' WHERE seq = 2")
    return "entry 2"


def act_taken_out(settings: Settings) -> str:
    rows(settings, "DELETE FROM audit WHERE seq = 1")
    return "entry 2"


FAULTS: list[tuple[Callable[[Settings], str], str]] = [
    (flipped_delta, "blob_damaged"),
    (missing_delta, "blob_missing"),
    (missing_beginning, "blob_missing"),
    (torn_present, "blob_damaged"),
    (other_weight, "version_not_reproduced"),
    (twice_in_a_version, "delta_applied_twice"),
    (twice_in_a_history, "delta_not_accepted"),
    (left_out, "delta_not_applied"),
    (other_digest, "version_differs"),
    (gap, "version_missing"),
    (older_present, "version_differs"),
    (unapplied_visit, "delta_not_accepted"),
    (foreign_delta, "delta_not_accepted"),
    (open_round, "round_differs"),
    (more_done, "round_differs"),
    (changed_act, "audit_broken"),
    (act_taken_out, "audit_broken"),
]


@pytest.mark.parametrize(("plant", "code"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_a_fault_is_named_and_named_again(copy: tuple[Settings, str], plant: Callable[[Settings], str], code: str) -> None:
    named = plant(copy[0])
    for quick in (False, False, True):
        if quick and code == "version_not_reproduced":
            continue
        with pytest.raises(FedError) as found:
            verify(*copy, quick=quick)
        assert found.value.code == code, found.value
        assert named in found.value.message
