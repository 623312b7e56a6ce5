"""Who holds a lease, who may take one, and when a sign of life is written down."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcybgd.coordinator.domain.agent import SEEN_EVERY, AgentState, needs_seen
from fedcybgd.coordinator.domain.assignment import AssignmentState, LeaseLost, StaleAttempt, check_lease, may_take

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
WAIT = timedelta(seconds=300)


def test_the_holder_of_this_very_attempt_passes() -> None:
    assert check_lease("leased", "ann", 3, "ann", 3) is None


@pytest.mark.parametrize("given_attempt", [2, 4, 0])
def test_another_attempt_is_fenced_off(given_attempt: int) -> None:
    with pytest.raises(StaleAttempt) as refused:
        check_lease("leased", "ann", 3, "ann", given_attempt)
    assert refused.value.code == "stale_attempt"
    assert refused.value.status == 409
    assert refused.value.detail == {"attempt": 3}


@pytest.mark.parametrize(
    ("state", "holder"), [("leased", "bob"), ("leased", None)] + [(str(s), "ann") for s in AssignmentState if s != "leased"]
)
def test_whoever_does_not_hold_the_lease_is_told_so(state: str, holder: str | None) -> None:
    with pytest.raises(LeaseLost) as refused:
        check_lease(state, holder, 3, "ann", 3)
    assert (refused.value.code, refused.value.status) == ("lease_lost", 409)
    assert state in refused.value.message


@pytest.mark.parametrize(
    ("meant_for", "excluded", "waited", "allowed"),
    [
        pytest.param("ann", [], 0, True, id="meant for it"),
        pytest.param(None, [], 0, True, id="meant for nobody"),
        pytest.param("bob", [], 0, False, id="meant for another"),
        pytest.param("bob", [], 299.999, False, id="the other has still time"),
        pytest.param("bob", [], 300, True, id="the other did not come"),
        pytest.param("ann", ["ann"], 0, False, id="excluded though meant for it"),
        pytest.param(None, ["ann"], 0, False, id="excluded from what anybody may take"),
        pytest.param("bob", ["ann"], 9999, False, id="excluded, however long it waits"),
        pytest.param("bob", ["bob"], 0, False, id="another's exclusion opens nothing"),
    ],
)
def test_may_take(meant_for: str | None, excluded: list[str], waited: float, allowed: bool) -> None:
    assert may_take("ann", meant_for, excluded, NOW - timedelta(seconds=waited), WAIT, NOW) is allowed


@pytest.mark.parametrize(
    ("meant_for", "waited", "allowed"), [("ann", 0, True), (None, 0, False), (None, 299.999, False), (None, 300, True), ("bob", 0, False)]
)
def test_who_has_a_part_in_a_wave_leaves_what_is_meant_for_nobody_to_others(meant_for: str | None, waited: float, allowed: bool) -> None:
    assert may_take("ann", meant_for, [], NOW - timedelta(seconds=waited), WAIT, NOW, leave_to_others=True) is allowed


@given(st.sampled_from([None, "ann", "bob"]), st.lists(st.sampled_from(["ann", "bob", "eve"])), st.integers(-10, 10_000))
def test_an_excluded_agent_never_takes_and_time_only_opens(meant_for: str | None, excluded: list[str], waited: int) -> None:
    now = may_take("ann", meant_for, excluded, NOW - timedelta(seconds=waited), WAIT, NOW)
    later = may_take("ann", meant_for, excluded, NOW - timedelta(seconds=waited), WAIT, NOW + timedelta(days=1))
    assert not (now and "ann" in excluded)
    assert later or not now
    assert later is ("ann" not in excluded)


@pytest.mark.parametrize(
    ("state", "ago", "needed"),
    [
        (AgentState.ENROLLED, None, True),
        (AgentState.SILENT, timedelta(0), True),
        (AgentState.ACTIVE, None, True),
        (AgentState.ACTIVE, SEEN_EVERY, True),
        (AgentState.ACTIVE, SEEN_EVERY - timedelta(milliseconds=1), False),
    ],
)
def test_a_poll_costs_a_write_only_now_and_then(state: str, ago: timedelta | None, needed: bool) -> None:
    assert needs_seen(state, NOW - ago if ago is not None else None, NOW) is needed
