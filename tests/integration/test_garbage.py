"""Superseded shards and applied deltas are deleted; whatever is still needed stays."""

import time
from pathlib import Path

import pytest

from coordinator.sweeper import tidy
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, start_run


def test_only_what_nothing_needs_is_deleted(live: LiveCoordinator, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = fresh("garbage")
    live.add_model(name, bert)
    agent = Hand(live)
    run = start_run(live, name, [agent], seed=77)  # a head that no other test has
    first = agent.take(run)
    before = {b.block: b.digest for b in first.manifest.blocks}
    delta = agent.deliver(first).digest
    second = agent.take(run)
    after = {b.block: b.digest for b in second.manifest.blocks}
    assert after["head"] != before["head"]

    tidy(live.settings, live.database, live.store)
    assert live.store.has(before["head"])  # too young to be judged

    later = time.time() + live.settings.keep_blobs_s + 60
    monkeypatch.setattr("coordinator.sweeper.time.time", lambda: later)
    tidy(live.settings, live.database, live.store)
    assert not live.store.has(before["head"])
    assert not live.store.has(delta)
    assert live.store.has(before["layers.0"])  # superseded in the run, but the model's own
    assert all(live.store.has(digest) for digest in after.values())
    assert all(live.store.has(f.digest) for f in second.manifest.files)
    live.operator.post(f"/runs/{run}/cancel")
