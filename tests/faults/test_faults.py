"""Five runs under faults of each kind, with a process that dies at one of the points that matter most in each; `make chaos` has hundreds."""

import re
from dataclasses import replace

import pytest

from tests.faults.chaos import started
from tests.faults.judged import disturbed
from tests.faults.plan import Plan, draw_few

SEED, AGENTS = 100, 2
OF_WHOLE_MODELS = (r"submit:", r"\(apply\) commit after")
"""Where a process dies while whole models are averaged; at the other points it is a block cycle, but for one."""
OF_ADAPTERS = r"engine \S+\(apply\)"
OF_CORRECTIONS = r"Outbox\.put replace after"
IMPORTANT = [
    r"web coordinator\.services\.path\.submit:\S+ commit after",
    r"web coordinator\.jobs\.taking:Queue\.complete\(apply\) commit after",
    r"engine \S+\(apply\) replace after",
    r"daemon agent\.outbox:Outbox\.put replace after",
    r"daemon agent\.client:Client\.submit request after",
]


@pytest.mark.timeout(900)  # on a machine with other work
def test_what_is_killed_cut_stopped_or_spoilt_changes_no_bit() -> None:
    with started(agents=AGENTS) as fleet:
        assert disturbed(fleet, Plan(SEED, "short", False, ())).identical  # nothing happens to it
        points = sorted(fleet.points())
        wrong = []
        for number, pattern in enumerate(IMPORTANT):
            point = next((p for p in points if re.fullmatch(pattern, p)), None)
            assert point, f"no point is called {pattern}; there are:\n" + "\n".join(points)
            plan = draw_few(SEED + 1 + number, point, AGENTS)
            if any(word in pattern for word in OF_WHOLE_MODELS):
                plan = replace(plan, flavour="whole")
            if OF_ADAPTERS in pattern:
                plan = replace(plan, flavour="adapters")
            if OF_CORRECTIONS in pattern:
                plan = replace(plan, flavour="corrected")
            outcome = disturbed(fleet, plan)
            print(f"{outcome.seconds:.1f} s: {'; '.join(outcome.faults)}")
            if not outcome.well:
                wrong.append(outcome)
        assert wrong == []
