"""Who holds a job: a lease that its owner renews, and the fence against results of those who lost it."""

from dataclasses import dataclass
from datetime import timedelta

from fedcybgd.coordinator.domain.jobs.kinds import JobState

LEASE = timedelta(seconds=10)
"""For so long a round stands still when the coordinator dies that judges it, and another is there."""
RENEW_EVERY_S = 2.5
"""Several times within a lease: one renewal may fail."""


@dataclass(frozen=True)
class Hold:
    """What a lane knows of a job while it does it. Both numbers change when somebody else takes the job."""

    job: str
    owner: str
    tries: int


def is_held(state: str, owner: str | None, tries: int, hold: Hold) -> bool:
    """Whether what `hold` says of a job is still so: else a result came too late, and is nobody's."""
    return state == JobState.RUNNING and (owner, tries) == (hold.owner, hold.tries)
