"""Every (state, event) pair of every machine leads to the state written here, or is refused."""

from typing import Any

import pytest

from fedcybgd.coordinator.domain.agent import AGENT
from fedcybgd.coordinator.domain.assignment import ASSIGNMENT
from fedcybgd.coordinator.domain.jobs.states import JOB
from fedcybgd.coordinator.domain.machine import InvalidTransition, Machine
from fedcybgd.coordinator.domain.model import MODEL
from fedcybgd.coordinator.domain.round import ROUND
from fedcybgd.coordinator.domain.run import RUN

# Written down a second time on purpose: a change of a table must be a change of mind, not a slip.
EXPECTED: dict[str, tuple[Machine[Any, Any], str, dict[str, dict[str, str]]]] = {
    "run": (RUN, "draft", {
        "draft": {"prepare": "draft", "start": "running", "fail": "failed", "cancel": "cancelled"},
        "running": {"pause": "paused", "finish": "completed", "fail": "failed", "cancel": "cancelled", "undo": "paused"},
        "paused": {"resume": "running", "finish": "completed", "fail": "failed", "cancel": "cancelled", "undo": "paused"},
        "completed": {},
        "failed": {},
        "cancelled": {},
    }),
    "round": (ROUND, "open", {
        "open": {"all_accepted": "applying", "deadline": "applying", "undo": "open"},
        "applying": {"applied": "closed", "partly_applied": "open", "lose": "open", "refuse": "open", "undo": "open"},
        "closed": {"undo": "open"},
    }),
    "assignment": (ASSIGNMENT, "pending", {
        "pending": {"claim": "leased", "undo": "undone"},
        "leased": {"claim": "leased", "lapse": "pending", "give_back": "pending", "withdraw": "pending", "submit": "submitted", "undo": "undone"},
        "submitted": {"accept": "accepted", "reject": "rejected", "lose": "pending", "undo": "undone"},
        "accepted": {"lose": "pending", "reject": "rejected", "undo": "undone"},
        "rejected": {},
        "undone": {},
    }),
    "model": (MODEL, "adding", {
        "adding": {"imported": "ready", "fail": "failed"},
        "ready": {},
        "failed": {"add_again": "adding"},
    }),
    "job": (JOB, "queued", {
        "queued": {"take": "running", "skip": "skipped"},
        "running": {"finish": "done", "fail": "failed", "interrupt": "queued"},
        "done": {},
        "failed": {"repeat": "queued"},
        "skipped": {},
    }),
    "agent": (AGENT, "enrolled", {
        "enrolled": {"seen": "active", "revoke": "revoked"},
        "active": {"seen": "active", "missed": "silent", "revoke": "revoked"},
        "silent": {"seen": "active", "revoke": "revoked"},
        "revoked": {},
    }),
}  # fmt: skip
PAIRS = [
    pytest.param(name, state, event, id=f"{name}-{state}-{event}")
    for name, (machine, _, _) in EXPECTED.items()
    for state in machine.states
    for event in machine.events
]


@pytest.mark.parametrize(("name", "state", "event"), PAIRS)
def test_every_pair_leads_where_it_should_or_is_refused(name: str, state: Any, event: Any) -> None:
    machine, _, table = EXPECTED[name]
    wanted = table[str(state)].get(str(event))
    if wanted is not None:
        assert machine.after(state, event) is machine.states(wanted)
        return
    with pytest.raises(InvalidTransition) as refused:
        machine.after(state, event)
    error = refused.value
    assert (error.code, error.status) == ("invalid_transition", 409)
    assert error.detail == {"state": str(state), "event": str(event)}
    article = "an" if name[0] in "aeiou" else "a"
    assert f"{article} {name} that is {state} cannot {event}" in error.message
    for possible in table[str(state)]:
        assert (possible in error.message) == (possible in {str(e) for e in machine.asked or machine.events}), (
            "what happens by itself nobody can ask for"
        )


@pytest.mark.parametrize("name", EXPECTED)
def test_states_and_start_are_those_of_the_design(name: str) -> None:
    machine, start, table = EXPECTED[name]
    assert machine.noun == name
    assert machine.start == start
    assert {str(s) for s in machine.states} == set(table)
    assert {str(s) for s in machine.states if machine.is_final(s)} == {s for s, events in table.items() if not events}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_state_can_be_reached_from_the_start(name: str) -> None:
    machine = EXPECTED[name][0]
    reached, fresh = {machine.start}, [machine.start]
    while fresh:
        state = fresh.pop()
        for (before, _event), after in machine.table.items():
            if before == state and after not in reached:
                reached.add(after)
                fresh.append(after)
    assert reached == set(machine.states)


def test_states_are_read_as_the_database_holds_them() -> None:
    assert RUN.after("draft", RUN.events.START) is RUN.states.RUNNING
    assert RUN.is_final("failed")
    assert not RUN.is_final("paused")


def test_a_state_that_does_not_exist_is_an_error_and_no_transition() -> None:
    with pytest.raises(ValueError, match="asleep"):
        RUN.after("asleep", RUN.events.START)
