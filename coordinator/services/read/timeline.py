"""The timeline of a run: its visits with the phases of each, in pages."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.coordinator.domain.timeline import VisitPhases
from fedcybgd.shared.contract.run_views import VisitView

VISITS = Order(Assignment.round, Assignment.seat, Assignment.id, newest_first=True)
HOLDER, MEANT = aliased(Agent), aliased(Agent)
VISIT_ROWS = (
    select(
        Assignment.id, Assignment.round, Assignment.seat, Assignment.blocks, Assignment.state, Assignment.reason, Assignment.attempt,
        Assignment.failures, Assignment.applied, Assignment.waiting_since, Assignment.leased_at, Assignment.submitted_at,
        Assignment.judged_at, Assignment.progress, Assignment.metrics, HOLDER.name.label("agent"), MEANT.name.label("meant_for"),
    )
    .join(HOLDER, HOLDER.id == Assignment.agent_id, isouter=True)
    .join(MEANT, MEANT.id == Assignment.meant_for, isouter=True)
)  # fmt: skip


def of_run(session: Session, name: str, page: Page) -> Listed[VisitView]:
    """The newest round first."""
    return VISITS.page(session, VISIT_ROWS.where(Assignment.run_id == queries.run_id(session, name)), page).map(_visit)


def of_agent(session: Session, agent_id: str, limit: int) -> list[VisitView]:
    """Visits that an agent holds or held last, of all runs: by the time of the lease, the newest first."""
    query = VISIT_ROWS.where(Assignment.agent_id == agent_id).order_by(Assignment.leased_at.desc()).limit(limit)
    return [_visit(row) for row in session.execute(query)]


def _visit(row: Any) -> VisitView:
    said, progress = row.metrics, row.progress
    times = VisitPhases(
        row.state, row.waiting_since, row.leased_at, row.submitted_at, row.judged_at, progress is not None and progress.phase == "training",
        said.started_at if said is not None else None, said.seconds if said is not None else None,
    )  # fmt: skip
    return VisitView(
        id=row.id, round=row.round, seat=row.seat, blocks=row.blocks, agent=row.agent, meant_for=row.meant_for, state=row.state,
        reason=row.reason, attempt=row.attempt, failures=row.failures, applied=row.applied, phases=times.all(),
    )  # fmt: skip
