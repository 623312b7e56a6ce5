"""Who can take it, and are they there? The question about work that waits, without a database."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from fedcybgd.coordinator.domain.outlook import Candidate, OutlookKind, outlook
from fedcybgd.coordinator.domain.standing import Standing

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
ANN = Candidate("ann", Standing.READY)
SILENT = Candidate("sid", Standing.SILENT, last_seen_at=NOW - timedelta(hours=1))
NEVER = Candidate("neo", Standing.NEVER_SEEN)
UNFIT = Candidate("una", Standing.UNFIT, reason="data_invalid")
FAILED = Candidate("fay", Standing.READY, excluded=True)
SEEN_ENOUGH = Candidate("bud", Standing.UNHEARD, beyond_budget=True)
BACK = Candidate("quinn", Standing.QUARANTINED, quarantined_until=LATER)
HOPELESS = [SILENT, NEVER, UNFIT, FAILED, SEEN_ENOUGH]


def test_it_waits_for_its_own_agent_only_while_that_is_there() -> None:
    own = Candidate("ann", Standing.READY, meant=True)
    found = outlook([own, SILENT], LATER)
    assert (found.kind, found.text) == (OutlookKind.AWAITED, "waits for ann until 2030-01-01 12:05:00 UTC")
    assert outlook([own], None).kind == OutlookKind.OPEN, "overdue: anybody's, its own agent's too"
    for gone in HOPELESS:
        other = Candidate(gone.name, gone.standing, gone.reason, gone.excluded, gone.beyond_budget, True)
        assert outlook([other, ANN], LATER).kind == OutlookKind.OPEN


@pytest.mark.parametrize("number", range(1, len(HOPELESS) + 1))
def test_nobody_of_these_is_left_to_ask(number: int) -> None:
    for some in itertools.combinations(HOPELESS, number):
        assert outlook(some, None).kind == OutlookKind.STUCK, some
        assert outlook([*some, ANN], None).kind == OutlookKind.OPEN, some
        found = outlook([*some, BACK], None)
        assert found.kind == OutlookKind.AWAITED, some
        assert "until 2030-01-01 12:05:00 UTC: " in found.text, some


def test_what_is_needed_names_everybody_and_a_way_out() -> None:
    text = outlook([SILENT, Candidate("sue", Standing.SILENT), UNFIT, FAILED], None).text
    assert "2 silent (sid since 2030-01-01 11:00:00 UTC, sue)" in text
    assert "1 excluded: data_invalid (una)" in text
    assert "1 excluded: failed at it (fay)" in text
    assert "start an agent (`fedagent run`)" in text
    assert "fedagent check" in text
    assert "resume" in text
    assert outlook([], None).text == "nobody may take it; enrol another agent"


def test_a_crowd_is_a_number_and_a_few_names() -> None:
    text = outlook([Candidate(f"a{n}", Standing.NEVER_SEEN) for n in range(1000)], None).text
    assert "1000 never seen (a0, a1, a2, a3, a4 and 995 more)" in text


def test_who_is_excluded_is_not_waited_for_though_his_quarantine_ends() -> None:
    gone = Candidate("quinn", Standing.QUARANTINED, excluded=True, quarantined_until=LATER)
    assert outlook([gone], None).kind == OutlookKind.STUCK
