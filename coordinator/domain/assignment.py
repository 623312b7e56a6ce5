"""The states of an assignment, its lease, and the fence that its attempts are."""

from datetime import datetime, timedelta
from enum import StrEnum

from fedcybgd.coordinator.domain.machine import Machine
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.shared.contract.assignments import COORDINATORS_OWN, LASTING_REASONS


class AssignmentState(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNDONE = "undone"


NOT_COUNTED = (AssignmentState.REJECTED, AssignmentState.UNDONE)
"""Of a seat that has such an assignment another one counts, or none."""


class TakenBack(StrEnum):
    """Why the coordinator takes an assignment from an agent that holds it: reasons of its own, beside those that agents give."""

    LAPSED = "lease_lapsed"
    LATE = "wave_deadline"
    REVOKED = "agent_revoked"
    NO_CONSENT = "consent_withdrawn"
    RUN_ENDED = "run_ended"
    BEYOND_BUDGET = "exposure_budget"
    STILL = "no_progress"
    TOO_LONG = "visit_too_long"
    ROLLED_BACK = "rolled_back"


ON_PURPOSE: frozenset[str] = frozenset(
    {"stopping", TakenBack.REVOKED, TakenBack.NO_CONSENT, TakenBack.RUN_ENDED, TakenBack.BEYOND_BUDGET, TakenBack.ROLLED_BACK}
)
"""Reasons that are nobody's failure, and tell nothing that an operator should look after."""
BLAMELESS: frozenset[str] = ON_PURPOSE | {"not_consented", "policy_refused"}
"""Reasons that are no failure of the visit."""


LEFT_TO_OTHERS: frozenset[str] = frozenset({"stalled", TakenBack.STILL, TakenBack.TOO_LONG})
"""Reasons after which a visit is anybody's at once: another try of the same agent may take as long again."""


def is_held_against(reason: str) -> bool:
    """Whether the agent that had it is to blame: it failed, or gave up what it had taken. Who says that it never can is not asked anyway."""
    return reason == "stopping" or reason not in BLAMELESS | LASTING_REASONS | COORDINATORS_OWN


class AssignmentEvent(StrEnum):
    CLAIM = "claim"
    LAPSE = "lapse"
    GIVE_BACK = "give_back"
    WITHDRAW = "withdraw"
    SUBMIT = "submit"
    ACCEPT = "accept"
    REJECT = "reject"
    LOSE = "lose"
    UNDO = "undo"


ASSIGNMENT = Machine(
    "assignment", AssignmentState, AssignmentEvent, AssignmentState.PENDING,
    {
        (AssignmentState.PENDING, AssignmentEvent.CLAIM): AssignmentState.LEASED,
        # The holder itself asks again: it restarted and lost what it did. The attempt counts up.
        (AssignmentState.LEASED, AssignmentEvent.CLAIM): AssignmentState.LEASED,
        (AssignmentState.LEASED, AssignmentEvent.LAPSE): AssignmentState.PENDING,
        (AssignmentState.LEASED, AssignmentEvent.GIVE_BACK): AssignmentState.PENDING,
        # Its round is applied without it: the blocks that it was trained from are no longer the present ones.
        (AssignmentState.LEASED, AssignmentEvent.WITHDRAW): AssignmentState.PENDING,
        (AssignmentState.LEASED, AssignmentEvent.SUBMIT): AssignmentState.SUBMITTED,
        (AssignmentState.SUBMITTED, AssignmentEvent.ACCEPT): AssignmentState.ACCEPTED,
        (AssignmentState.SUBMITTED, AssignmentEvent.REJECT): AssignmentState.REJECTED,
        # The held-out loss would have risen out of all proportion.
        (AssignmentState.ACCEPTED, AssignmentEvent.REJECT): AssignmentState.REJECTED,
        # The coordinator's disk has spoilt the delta before it was applied: it is trained again, and nobody is blamed.
        (AssignmentState.SUBMITTED, AssignmentEvent.LOSE): AssignmentState.PENDING,
        (AssignmentState.ACCEPTED, AssignmentEvent.LOSE): AssignmentState.PENDING,
        # Its round is undone, or its delta is taken out of the model.
        (AssignmentState.PENDING, AssignmentEvent.UNDO): AssignmentState.UNDONE,
        (AssignmentState.LEASED, AssignmentEvent.UNDO): AssignmentState.UNDONE,
        (AssignmentState.SUBMITTED, AssignmentEvent.UNDO): AssignmentState.UNDONE,
        (AssignmentState.ACCEPTED, AssignmentEvent.UNDO): AssignmentState.UNDONE,
    },
)  # fmt: skip


class StaleAttempt(Conflict):
    """A later attempt of this assignment was begun, or another delta was submitted for it: the caller's work is not used."""

    code = "stale_attempt"


class LeaseLost(Conflict):
    """The caller does not hold the lease (any more): stop training."""

    code = "lease_lost"


def check_lease(state: str, holder: str | None, attempt: int, agent: str, given: int) -> None:
    """Raise unless `agent` holds the lease of this very attempt."""
    if given != attempt:
        why = f"was overtaken by attempt {attempt}" if given < attempt else f"has not begun: this is attempt {attempt}"
        raise StaleAttempt(f"attempt {given} {why}; ask for work again", attempt=attempt)
    if state != AssignmentState.LEASED or holder != agent:
        raise LeaseLost(f"you do not hold this assignment any more (it is {state}); ask for work again", state=state)


def may_take(
    agent: str,
    meant_for: str | None,
    excluded: list[str],
    waiting_since: datetime,
    reassign_after: timedelta,
    now: datetime,
    leave_to_others: bool = False,
) -> bool:
    """Whether an agent may lease a pending assignment: it is meant for it, or for nobody, or its agent has not come for too long.

    `leave_to_others`: the agent has a part in this round already and others have none, so what is meant for nobody is theirs, unless
    they do not come for as long.
    """
    if agent in excluded:
        return False
    if now - waiting_since >= reassign_after:
        return True
    return meant_for == agent or (meant_for is None and not leave_to_others)
