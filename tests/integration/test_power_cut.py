"""What was promised is on the disk before it is answered, and nothing else waits for the disk."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedcybgd.coordinator.db import promises
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, operator, start_run


@pytest.fixture
def synced(live: LiveCoordinator, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the database's log was brought to the disk since it was asked the last time."""
    if live.database.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does it by itself")
    fsync, times = os.fsync, 0

    def noted(descriptor: int) -> None:
        nonlocal times
        fsync(descriptor)
        times += Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith("-wal")

    monkeypatch.setattr(os, "fsync", noted)

    def since() -> int:
        nonlocal times
        found, times = times, 0
        return found

    return since


def test_keys_revocations_and_receipts_are_on_the_disk_before_they_are_answered(
    live: LiveCoordinator, model: str, synced: Callable[[], int]
) -> None:
    hand = Hand(live)
    assert synced() == 2, "the token, and the agent"
    assert hand.http.post("/agents/me/key").status_code == 200
    assert synced() == 1
    hand = Hand(live)
    run = start_run(live, model, [hand])
    visit = hand.take(run)
    synced()
    delta = hand.delta(visit)
    assert hand.renew(visit).status_code == 200
    assert synced() == 0, "a lease that is lost is given again"
    hand.deliver(visit, delta)
    assert synced() == 1
    assert operator(live).post(f"/agents/{hand.name}/revoke").status_code == 200
    assert synced() == 1
    live.operator.post("/operators", {"name": fresh("vera"), "role": "viewer"})
    assert synced() == 1


def test_what_was_rolled_back_waits_for_nothing(live: LiveCoordinator, synced: Callable[[], int]) -> None:
    def broken() -> None:
        with live.database.transaction() as session:
            promises.promise(session)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert synced() == 0
