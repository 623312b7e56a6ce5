"""What comes next: the seats of a round, before it is open, and the shards that its agents will ask for."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Run
from fedcybgd.coordinator.domain.exposure import ExposureBudgetTooSmall
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.coordinator.services.emulators import exposure_budget, shards
from fedcybgd.coordinator.services.measure import calibration

ANYBODY = ["anybody"]
"""Who takes part before a run begins: the order of its blocks does not depend on it."""


def seats(session: Session, run: Run, spec: RunFile, number: int) -> list[Seat]:
    """Raises `ExposureBudgetTooSmall`."""
    unbounded, ranked = spec.exposure.max_exact_blocks is None, spec.schedule.order == "importance"
    blocks = [] if unbounded and not ranked else queries.blocks_of(session, run.id)
    common = spec.schedule.always if unbounded else exposure_budget.common(spec, blocks)
    ranking = calibration.by_importance(blocks) if ranked else []
    return method_of(spec).seats(spec, run.trained_blocks, run.participants or ANYBODY, number, common, ranking)


def trained(session: Session, run: Run, spec: RunFile, number: int) -> set[str]:
    """The blocks that the agents of a round train; none where there is no such round, or nobody could take part in it."""
    if number >= run.rounds_total:
        return set()
    try:
        found = seats(session, run, spec, number)
    except ExposureBudgetTooSmall:  # it is said when the round is to open
        return set()
    return {name for seat in found for name in (*seat.blocks, *seat.along(spec.schedule.always))}


def request(session: Session, run: Run, spec: RunFile, number: int, now: datetime) -> None:
    """Have packed what the agents of a round get to train, and while they do what those of the next will get, if it stays as it is."""
    wanted = trained(session, run, spec, number) | trained(session, run, spec, number + 1)
    shards.request_ahead(session, run, {name: [spec.compression.trained] for name in sorted(wanted)}, now)
