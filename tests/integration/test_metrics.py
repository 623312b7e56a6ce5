"""`/metrics` of a coordinator: what happens is counted once it is committed, and what is, is told by sums."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedcybgd.coordinator.db import counts
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, settled, start_run, wire

pytestmark = pytest.mark.database_decides


def scrape(live: LiveCoordinator) -> dict[str, float]:
    answer = wire(live, live.operator_key).get(live.url + "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name + "".join(f"|{k}={v}" for k, v in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_round_with_a_rejected_delta_is_told(live: LiveCoordinator, model: str, hand: Hand, other: Hand) -> None:
    before = scrape(live)
    run = start_run(live, model, [hand, other], schedule={"agents": "first_come"})
    first = hand.take(run)
    # Those of other tests lapse meanwhile.
    assert scrape(live)["fedcoord_assignments|state=leased"] >= 1
    hand.deliver(first, {name: t * float("nan") for name, t in hand.delta(first).items()})
    settled(live, run)
    other.deliver(other.take(run))
    settled(live, run)
    other.give_back(other.take(run), "stalled")
    after = scrape(live)

    def grown(series: str) -> float:
        return after.get(series, 0) - before.get(series, 0)

    assert grown("fedcoord_leases_total") == 3
    assert grown("fedcoord_rounds_closed_total") == 1
    assert grown("fedcoord_admissions_total|verdict=accepted|reason=") == 1
    rejected = {s: grown(s) for s in after if s.startswith("fedcoord_admissions_total|verdict=rejected") and grown(s)}
    assert list(rejected.values()) == [1]
    assert grown("fedcoord_attempts_failed_total|reason=stalled") == 1
    assert grown("fedcoord_bytes_total|kind=delta") > 0
    assert grown("fedcoord_bytes_total|kind=shard") > 0
    assert grown("fedcoord_jobs_total|kind=admit|state=done") == 2
    assert grown("fedcoord_events_total|level=warning") >= 1
    for histogram, count in {"queue": 3, "visit": 2, "judge": 2, "round": 1}.items():
        assert grown(f"fedcoord_{histogram}_seconds_count") == count, histogram
    assert after[f"fedcoord_run_rounds_done|run={run}"] == 1
    assert not [series for series in after if hand.name in series], "agents are counted, and not named"
    assert after[f"fedcoord_run_paused|run={run}"] == 0
    live.operator.post(f"/runs/{run}/pause")
    assert scrape(live)[f"fedcoord_run_paused|run={run}"] == 1
    live.operator.post(f"/runs/{run}/cancel")
    assert f"fedcoord_run_rounds|run={run}" not in scrape(live), "what has ended makes no series any more"


def test_what_is_rolled_back_is_not_counted(live: LiveCoordinator) -> None:
    heard = live.app.state.counters
    before = [entry.value for entry in heard.entries() if entry.metric == "fedcoord_leases_total"]

    def fail() -> None:
        with live.database.transaction() as session:
            counts.count(session, "fedcoord_leases_total")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [entry.value for entry in heard.entries() if entry.metric == "fedcoord_leases_total"] == before
