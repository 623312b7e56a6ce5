"""`/v1/events/stream`: server-sent events, gone on with by id."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from fedcybgd.coordinator.api.deps import FeedDep, ViewerDep
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute
from fedcybgd.coordinator.wakes.event_feed import EventFeed, server_sent
from fedcybgd.shared.contract.run_views import EventEntry

router = APIRouter(route_class=DatabaseRoute, responses=errors(401, 403, 422, 503))
KIND = "text/event-stream"
LASTS_S = 60.0
"""Then who listens asks again, and shows that it may."""
HEARD_S = 15.0
"""Something is sent at least so often, for those on the way who end what is silent"""
Id = Annotated[int | None, Query(ge=0, lt=2**31, description="only what came after this event; without it what happens from now on")]


@router.get(
    "/events/stream", summary="Events as they happen", response_class=StreamingResponse, tags=["status"], dependencies=[ViewerDep],
    responses={200: {"description": "server-sent events: `id`, and an event as JSON in `data`", "content": {KIND: {}}}},
)  # fmt: skip
async def stream(
    request: Request,
    feed: FeedDep,
    after: Id = None,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31, description="the same, as browsers say it")] = None,
) -> StreamingResponse:
    """Each event within a second. The stream ends after a minute: go on with the id of the last event, as `EventSource` does by itself."""
    return streamed(request, feed, last_event_id if last_event_id is not None else after)


def streamed(request: Request, feed: EventFeed[EventEntry], after: int | None) -> StreamingResponse:
    """Raises `FeedFull`."""
    who: str = request.state.caller.name
    feed.check(who)
    lines = server_sent(feed, after, LASTS_S, HEARD_S, EventEntry.model_dump_json, who)
    return StreamingResponse(lines, media_type=KIND, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
