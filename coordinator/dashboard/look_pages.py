"""`/admin/agents`, `/admin/models`, `/admin/events`, `/admin/audit` and `/admin/compare`: what people look through."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from fedcybgd.coordinator.api.paging import PageDep
from fedcybgd.coordinator.api.route import ReadDep
from fedcybgd.coordinator.dashboard.browser import PATH, ABrowser, PageRoute, show
from fedcybgd.coordinator.dashboard.filters import WantedDep, Word
from fedcybgd.coordinator.dashboard.scored import X, pictures
from fedcybgd.coordinator.db.paging import Page
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.operate import held_out, model_uploads
from fedcybgd.coordinator.services.read import comparison, events, lists, status, timeline
from fedcybgd.coordinator.services.read.events import Wanted

router = APIRouter(route_class=PageRoute, prefix=PATH, include_in_schema=False)
viewer = [Depends(ABrowser())]
ROWS, VISITS, EVENTS, POINTS = 50, 20, 10, 120
State = Literal["enrolled", "active", "silent", "revoked", "quarantined", ""]


@router.get("/agents", dependencies=viewer)
def agents(request: Request, session: ReadDep, page: PageDep, state: State = "") -> Response:
    found = lists.agents(session, Page(page.after, ROWS), state or None)
    return show(request, "agents.html", here="agents", found=found, state=state, counts=status.agent_counts(session))


@router.get("/agents/{name}", dependencies=viewer)
def agent(name: str, request: Request, session: ReadDep, page: PageDep) -> Response:
    """One agent: what it is, what it did last, and what it has received."""
    found = lists.agent(session, name)
    received = lists.exposure(session, found.id, Page(page.after, ROWS))
    return show(
        request, "agent.html", here="agents", agent=found, visits=timeline.of_agent(session, found.id, Page(limit=VISITS)).items,
        events=events.listed(session, Wanted(agent=found.id), Page(limit=EVENTS)).items,
        said=readiness.said_by(session, found.id, EVENTS), exposure=received, run_names=lists.run_names(session, {each.run_id for each in received.items}),
    )  # fmt: skip


@router.get("/models", dependencies=viewer)
def models(request: Request, session: ReadDep, page: PageDep) -> Response:
    """With what is on its way of others, and the files that models are scored on."""
    return show(
        request, "models.html", here="models", found=lists.models(session, Page(page.after, ROWS)),
        arriving=model_uploads.listed(session, Page(limit=ROWS)).items, scored_on=held_out.listed(session, Page(limit=ROWS)),
    )  # fmt: skip


@router.get("/events", dependencies=viewer)
def happened(request: Request, session: ReadDep, page: PageDep, wanted: WantedDep) -> Response:
    return show(request, "events.html", here="events", found=events.listed(session, wanted, Page(page.after, ROWS)), wanted=wanted)


@router.get("/audit", dependencies=viewer)
def audit(request: Request, session: ReadDep, page: PageDep, name: Word = "") -> Response:
    found = lists.acts(session, Page(page.after, ROWS), newest_first=True, name=name or None)
    return show(request, "audit.html", here="audit", found=found, name=name)


@router.get("/compare", dependencies=viewer)
def compare(request: Request, session: ReadDep, run: Annotated[list[Word] | None, Query(max_length=8)] = None, x: X = "bytes") -> Response:
    """The curves and the last scores of runs beside each other."""
    found = comparison.of(session, list(run or []), POINTS)
    drawn = pictures([(one.compared.called, one.series) for one in found.runs], x) if found.runs else None
    return show(request, "compare.html", here="runs", found=found, pictures=drawn, x=x)
