"""The timeline of a run: its visits with the phases of each, in pages."""

from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session, aliased

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Run
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.coordinator.domain.timeline import VisitPhases
from fedcybgd.shared.contract.run_views import VisitView

OF_AGENT = Order(Assignment.leased_at, Assignment.id, newest_first=True)
VISITS = Order(Assignment.round, Assignment.seat, Assignment.id, newest_first=True)
HOLDER, MEANT = aliased(Agent), aliased(Agent)
VISIT_ROWS = (
    select(
        Assignment.id, Assignment.run_id, Run.name.label("run"), Assignment.round, Assignment.seat, Assignment.blocks, Assignment.state,
        Assignment.reason, Assignment.attempt,
        Assignment.failures, Assignment.applied, Assignment.waiting_since, Assignment.leased_at, Assignment.submitted_at,
        Assignment.judged_at, Assignment.progress, Assignment.metrics, HOLDER.name.label("agent"), MEANT.name.label("meant_for"),
    )
    .join(Run, Run.id == Assignment.run_id)
    .join(HOLDER, HOLDER.id == Assignment.agent_id, isouter=True)
    .join(MEANT, MEANT.id == Assignment.meant_for, isouter=True)
)  # fmt: skip
# Statements are made once: that costs more than asking.
VISITS_OF_RUN = VISIT_ROWS.where(Assignment.run_id == bindparam("run"))
VISITS_OF_AGENT = VISIT_ROWS.where(Assignment.agent_id == bindparam("agent"))


def of_run(session: Session, name: str, page: Page) -> Listed[VisitView]:
    """The newest round first."""
    return VISITS.page(session, VISITS_OF_RUN, page, run=queries.run_id(session, name)).map(_visit)


def of_agent(session: Session, name: str, page: Page) -> Listed[VisitView]:
    """Visits that an agent has or had, of all runs, the newest first."""
    return OF_AGENT.page(session, VISITS_OF_AGENT, page, agent=queries.agent_by_name(session, name).id).map(_visit)


def _visit(row: Any) -> VisitView:
    said, progress = row.metrics, row.progress
    times = VisitPhases(
        row.state, row.waiting_since, row.leased_at, row.submitted_at, row.judged_at, progress is not None and progress.phase == "training",
        said.started_at if said is not None else None, said.seconds if said is not None else None,
    )  # fmt: skip
    return VisitView(
        id=row.id, run=row.run, run_id=row.run_id, round=row.round, seat=row.seat, blocks=row.blocks, agent=row.agent, meant_for=row.meant_for, state=row.state,
        reason=row.reason, attempt=row.attempt, failures=row.failures, applied=row.applied, phases=times.all(),
        tokens_per_s=said.tokens_per_s if said is not None else None, loss_first=said.loss_first if said is not None else None,
        loss_last=said.loss_last if said is not None else None, peak_memory_bytes=said.peak_memory_bytes or None if said is not None else None,
    )  # fmt: skip
