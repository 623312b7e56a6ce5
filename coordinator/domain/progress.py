"""Whether an attempt gets on, and when it is over: a renewal alone is no progress."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from fedcybgd.coordinator.domain.assignment import TakenBack
from fedcybgd.shared.contract.assignments import Progress

LEAST_LIFE_S, MOST_LIFE_S = 3600.0, 7 * 86_400.0
"""An attempt may take so long at the least, and at the most."""


@dataclass(frozen=True)
class Attempt:
    """What is known of one that somebody has. None: nothing, of attempts from before that was kept."""

    leased_at: datetime | None
    progressed_at: datetime | None
    patience_s: float | None
    ends_at: datetime | None
    progress: Progress | None
    """what was said last"""

    def got_on(self, said: Progress | None) -> bool:
        """Whether an agent that says this is further than before.

        Who is held up by a trouble that it tells waits for a person; and an agent that does not count what it moves is believed while it
        fetches, loads or sends. Either may go on for no longer than an attempt may take as a whole.
        """
        if said is None:
            return False
        before = self.progress
        if before is None or said.trouble is not None or (said.moved is None and said.phase != "training"):
            return True
        return (said.phase, said.step, said.moved) != (before.phase, before.step, before.moved)

    def over(self, said: Progress | None, now: datetime) -> tuple[TakenBack, str] | None:
        """Why it is not to be renewed any more, for people too: it stands still, or has taken too long."""
        if self.ends_at is not None and now >= self.ends_at:
            took = f"{(now - self.leased_at).total_seconds():.0f} s" if self.leased_at is not None else "long"
            return TakenBack.TOO_LONG, f"the attempt has taken {took}, as long as it may"
        if self.progressed_at is None or self.patience_s is None or self.got_on(said):
            return None
        if now < self.progressed_at + timedelta(seconds=self.patience_s):
            return None
        at = f" in phase {self.progress.phase}, step {self.progress.step} of {self.progress.steps}" if self.progress is not None else ""
        still = (now - self.progressed_at).total_seconds()
        return TakenBack.STILL, f"no progress for {still:.0f} s{at}; more than {self.patience_s:.0f} s are not waited for"
