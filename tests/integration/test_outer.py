"""The momentum of an averaged run is part of its history: made again, gone back to, kept, mended and told to strangers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from fedcybgd.client.client import Client
from fedcybgd.coordinator import provenance
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import BlockVersion
from fedcybgd.coordinator.domain.verification import VersionInvalid, VersionUnlike
from fedcybgd.coordinator.services.upkeep import garbage
from fedcybgd.coordinator.verify import verify
from tests.support import provenance_checker
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, events, settled, start_run, wire

OUTER = {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True}
TRAINED = ["head", "layers.0", "layers.1"]


@pytest.fixture
def live(coordinators: Callable[..., LiveCoordinator], bert: Path) -> LiveCoordinator:
    made = coordinators()
    made.add_model("bert", bert)
    return made


def begin(live: LiveCoordinator) -> tuple[list[Hand], str]:
    hands = [Hand(live), Hand(live)]
    return hands, start_run(live, "bert", hands, method="whole", whole={"outer": OUTER}, compression={}, schedule={"cycles": 3})


def play(live: LiveCoordinator, hands: list[Hand], run: str, *rounds: int) -> None:
    """Deltas of rounds, which are the same in every run."""
    for number in rounds:
        for i, hand in enumerate(hands):
            assignment = hand.take(run)
            draw, shapes = torch.Generator().manual_seed(10 * number + i), hand.delta(assignment)
            hand.deliver(assignment, {name: 0.01 * torch.randn(shapes[name].shape, generator=draw) for name in sorted(shapes)})
        settled(live, run)


def present(live: LiveCoordinator, run: str) -> dict[str, tuple[str, str | None]]:
    """Block → digest, and that of what the outer optimizer carries on."""
    view = live.operator.get(f"/runs/{run}")
    with live.database.reading() as session:
        carried = {
            (row.block, row.version): row.velocity for row in session.scalars(select(BlockVersion).where(BlockVersion.run_id == view["id"]))
        }
    return {b["name"]: (b["digest"], carried[b["name"], b["version"]]) for b in view["blocks"]}


@pytest.mark.database_decides
def test_what_is_gone_back_to_lost_or_told_to_a_stranger_is_the_same(live: LiveCoordinator, tmp_path: Path) -> None:
    hands, run = begin(live)
    play(live, hands, run, 0, 1, 2)
    wanted = present(live, run)
    assert [block for block, (_, velocity) in sorted(wanted.items()) if velocity] == TRAINED
    assert verify(live.settings, run).made_again == 9

    hands, again = begin(live)
    play(live, hands, again, 0, 1)
    runs = Client(live.url, live.operator_key).runs
    runs.rollback(again, after_rounds=1)
    settled(live, again)
    runs.resume(again)
    lost = {velocity for _, velocity in present(live, again).values() if velocity}
    with live.database.reading() as session:
        assert lost <= garbage.needed(session, utcnow())
    for digest in lost:
        live.store.path(digest).unlink()
    play(live, hands, again, 1, 2)
    assert present(live, again) == wanted
    assert events(live, again).count("blob_mended") == len(lost)
    assert verify(live.settings, again).made_again == 3 * 4

    said = runs.provenance(again)
    (tmp_path / "provenance.json").write_text(said.model_dump_json())
    for digest, _ in live.store.stored():
        shutil.copy(live.store.path(digest), tmp_path / digest)
    key = wire(live).get("/key").json()["key"]
    assert provenance_checker.check(tmp_path / "provenance.json", key, tmp_path, tmp_path) == 3 * 4
    assert provenance.check(tmp_path / "provenance.json", key, blobs=live.settings.blobs).made_again == 3 * 4


def test_a_momentum_that_is_none_of_the_rounds_before_is_found(live: LiveCoordinator) -> None:
    hands, run = begin(live)
    play(live, hands, run, 0, 1, 2)
    with live.database.transaction() as session:
        rows = {row.version: row for row in session.scalars(select(BlockVersion).where(BlockVersion.block == "layers.0"))}
        first, second, last = (rows[version].velocity for version in (1, 2, 3))
        rows[3].velocity = second
    with pytest.raises(VersionUnlike, match=r"block layers\.0, version 3: its outer optimizer"):
        verify(live.settings, run)
    with live.database.transaction() as session:
        row = session.scalars(select(BlockVersion).where(BlockVersion.block == "layers.0", BlockVersion.version == 3)).one()
        assert row.change is not None
        row.velocity, row.change = last, row.change.model_copy(update={"velocity": first})
    with pytest.raises(VersionInvalid, match=r"block layers\.0, version 3: its outer optimizer went on from"):
        verify(live.settings, run)
