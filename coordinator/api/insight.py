"""`/v1/runs/{run}/…` and `/v1/events`: what people see of a run from near, and look through."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from fedcybgd.coordinator.api.deps import ViewerDep
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.services.operate import exports
from fedcybgd.coordinator.services.read import block_map, events, series, timeline
from fedcybgd.shared.contract.run_views import BlockMapView, EventEntry, ExportEntry, SeriesView, VersionView, VisitView

router = APIRouter(route_class=DatabaseRoute, responses=errors(401, 403, 404, 422))
NAME = 200
viewer = [ViewerDep]


@router.get(
    "/runs/{run}/blocks", summary="The block map of a run", response_model=list[BlockMapView], responses={200: PAGED}, tags=["runs"],
    dependencies=viewer,
)  # fmt: skip
def list_blocks(run: str, session: ReadDep, page: PageDep, response: Response) -> list[BlockMapView]:
    """Every block in the order of the model, in pages: its version, who is at it, its sizes by codec, and what became of the last delta."""
    return paged(response, block_map.of_run(session, queries.run_by_name(session, run), page))


@router.get(
    "/runs/{run}/blocks/{block}/versions", summary="The versions of a block", response_model=list[VersionView], responses={200: PAGED},
    tags=["runs"], dependencies=viewer,
)  # fmt: skip
def list_versions(run: str, block: str, session: ReadDep, page: PageDep, response: Response) -> list[VersionView]:
    """The newest first, in pages: what each was made of, and by whom."""
    return paged(response, block_map.versions_of(session, queries.run_by_name(session, run), block, page))


@router.get(
    "/runs/{run}/timeline", summary="The timeline of a run", response_model=list[VisitView], responses={200: PAGED}, tags=["runs"],
    dependencies=viewer,
)  # fmt: skip
def list_visits(run: str, session: ReadDep, page: PageDep, response: Response) -> list[VisitView]:
    """Who trained which block when, the newest round first, in pages: waiting, transfer, training and judging of each visit."""
    return paged(response, timeline.of_run(session, run, page))


@router.get(
    "/runs/{run}/exports", summary="The exports of a run", response_model=list[ExportEntry], responses={200: PAGED}, tags=["runs"],
    dependencies=viewer,
)  # fmt: skip
def list_exports(run: str, session: ReadDep, page: PageDep, response: Response) -> list[ExportEntry]:
    """The newest first, in pages; the files of an export are there for a day."""
    return paged(response, exports.listed(session, run, page))


@router.get(
    "/agents/{name}/visits", summary="The visits of an agent", response_model=list[VisitView], responses={200: PAGED}, tags=["agents"],
    dependencies=viewer,
)  # fmt: skip
def list_visits_of(name: str, session: ReadDep, page: PageDep, response: Response) -> list[VisitView]:
    """Of all runs, the newest first, in pages: when, what came of it, how fast."""
    return paged(response, timeline.of_agent(session, name, page))


@router.get("/runs/{run}/series", summary="The curves of a run", response_model=SeriesView, tags=["runs"], dependencies=viewer)
def get_series(
    run: str, session: ReadDep, points: Annotated[int, Query(ge=2, le=1000, description="of each curve at the most")] = 200
) -> SeriesView:
    """Its scores and losses, evenly thinned, each score with the bytes, tokens and seconds that the model had cost by then."""
    return series.of_run(session, queries.run_by_name(session, run), points)


@router.get("/events", summary="Events", response_model=list[EventEntry], responses={200: PAGED}, tags=["status"], dependencies=viewer)
def list_events(
    session: ReadDep,
    page: PageDep,
    response: Response,
    run: Annotated[str | None, Query(max_length=NAME, description="id or name")] = None,
    agent: Annotated[str | None, Query(max_length=NAME, description="id or name")] = None,
    level: Literal["info", "warning", "error"] | None = None,
    code: Annotated[str | None, Query(max_length=NAME)] = None,
) -> list[EventEntry]:
    """What happened, the newest first, in pages; of everything, or of one run, agent, level or code."""
    return paged(response, events.listed(session, events.Wanted(run, agent, level, code), page))
