"""An assignment that waits for an agent, as far as can be said of it without asking the database."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.versions import ADAPTERS, CORRECTIONS, LABEL_SKEW, SMOOTHED, SPOKEN, TRAINED_IN_8_BITS, Version


@dataclass(frozen=True)
class Claimant:
    """An agent that asks for work, and what it consents to."""

    id: str
    name: str
    request: ClaimRequest
    speaks: Version
    """the version of the protocol that it asks in"""


@dataclass(frozen=True)
class Opening:
    """An assignment of a running run that nobody holds."""

    assignment_id: str
    run_id: str
    run_name: str
    meant_for: str | None
    excluded: frozenset[str]
    overdue: bool
    """it has waited so long that anybody may stand in"""
    open_to: frozenset[str] | None
    """names of the agents that its run is open to; None: all"""
    shared: bool
    """it is one of several of its round: whether an agent may have it depends on who else has a part"""
    needs: Version
    """the version of the protocol in which all is known that its agent is told"""

    def is_for(self, claimant: Claimant) -> bool:
        """Whether this agent might get it. What else is asked before a lease (the exposure budget, say) only the database knows."""
        if claimant.speaks < self.needs:
            return False
        if self.meant_for is not None and self.meant_for != claimant.id and not self.overdue:
            return False
        if claimant.id in self.excluded or (self.open_to is not None and claimant.name not in self.open_to):
            return False
        return consents(claimant.request, self.run_id, self.run_name)


FIRST = Version(SPOKEN.major, 0)


def needed(spec: RunFile) -> Version:
    """The version of the protocol that an agent must know to train as the run file says: an earlier one would leave out what is new."""
    if spec.compression.trained != EXACT:
        return TRAINED_IN_8_BITS
    if spec.label_skew == "smoothed" or spec.schedule.head_start != "fresh":
        return SMOOTHED
    if spec.corrections is not None:
        return CORRECTIONS
    if spec.adapters is not None:
        return ADAPTERS
    return FIRST if spec.label_skew == "none" else LABEL_SKEW


def consents(request: ClaimRequest, run_id: str, run_name: str) -> bool:
    """Whether an agent takes work of a run, by its name."""
    return run_id not in request.refuses and any(fnmatchcase(run_name, pattern) for pattern in request.runs)
