"""`/admin/events.jsonl` and `/admin/audit.jsonl`: what the lists show, whole, as a file with one JSON object a line."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from fedcybgd.coordinator.api.route import ReadDep
from fedcybgd.coordinator.dashboard.browser import PATH, ABrowser, PageRoute
from fedcybgd.coordinator.dashboard.filters import WantedDep, Word
from fedcybgd.coordinator.db.paging import Listed, Page, Read, walked
from fedcybgd.coordinator.services.read import events, lists

router = APIRouter(route_class=PageRoute, prefix=PATH, include_in_schema=False)
viewer = [Depends(ABrowser())]
ROWS = 1000
"""A transaction reads so many: a long list holds up nobody, nor is it ever whole in memory."""


@router.get("/events.jsonl", dependencies=viewer)
def happened(request: Request, session: ReadDep, wanted: WantedDep) -> Response:
    """The newest first."""
    return _file(request, session, "events.jsonl", lambda session, page: events.listed(session, wanted, page))


@router.get("/audit.jsonl", dependencies=viewer)
def acts(request: Request, session: ReadDep, name: Word = "") -> Response:
    """The oldest first, as `fedcoord audit verify` wants the whole of it."""
    return _file(request, session, "audit.jsonl", partial(lists.acts, newest_first=False, name=name or None))


def _file(request: Request, session: Session, name: str, read: Read[Any]) -> Response:
    first = read(session, Page(limit=ROWS))  # what is wrong with the question is said before the file begins
    lines = map(_text, walked(request.app.state.database, first, read, ROWS))
    return StreamingResponse(lines, media_type="application/jsonl", headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _text(found: Listed[Any]) -> str:
    return "".join(f"{item.model_dump_json()}\n" for item in found.items)
