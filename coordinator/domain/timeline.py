"""When a visit waited, moved bytes, trained and was judged: by the coordinator's clock, and within it by what the agent says."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.shared.contract.run_views import PhaseKind, PhaseView


@dataclass(frozen=True)
class VisitPhases:
    """What is known of the last attempt at a visit."""

    state: str
    waiting_since: datetime
    leased_at: datetime | None
    submitted_at: datetime | None
    judged_at: datetime | None
    training: bool
    """it says that it trains now"""
    started_at: datetime | None
    """when its first step began, by its own clock"""
    trained_s: float | None

    def all(self) -> list[PhaseView]:
        """In the order of time. A training that the agent's clock puts outside of its lease ended when the delta arrived."""
        return [PhaseView(kind=kind, begins=begins, ends=ends) for kind, begins, ends in self._each() if ends is None or ends > begins]

    def _each(self) -> Iterator[tuple[PhaseKind, datetime, datetime | None]]:
        leased = self.leased_at if self.leased_at is not None and self.leased_at >= self.waiting_since else None
        over = self.judged_at if self.state == AssignmentState.UNDONE else None
        if self.state == AssignmentState.PENDING or leased is None:
            yield "waiting", self.waiting_since, over
            return
        yield "waiting", self.waiting_since, leased
        if self.submitted_at is None or self.submitted_at < leased:
            yield "training" if self.training else "transfer", leased, over
            return
        yield from self._attempt(leased, self.submitted_at)
        yield "judging", self.submitted_at, self.judged_at

    def _attempt(self, leased: datetime, submitted: datetime) -> Iterator[tuple[PhaseKind, datetime, datetime]]:
        if self.trained_s is None:
            yield "transfer", leased, submitted
            return
        took = timedelta(seconds=min(self.trained_s, (submitted - leased).total_seconds()))
        begins = self.started_at if self.started_at is not None and leased <= self.started_at <= submitted - took else submitted - took
        yield "transfer", leased, begins
        yield "training", begins, begins + took
        yield "transfer", begins + took, submitted
