"""`/admin`: what needs somebody, and what goes on; and the way in and out."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Header, Request, Response
from fastapi.responses import RedirectResponse

from fedcybgd.coordinator.api import acts
from fedcybgd.coordinator.api.deps import DisksDep, FeedDep, OpenDep, ReplicaDep, WaitingDep, now
from fedcybgd.coordinator.api.event_stream import streamed
from fedcybgd.coordinator.api.guard import address_of
from fedcybgd.coordinator.api.route import ReadDep, WriteDep
from fedcybgd.coordinator.dashboard.browser import (
    COOKIE,
    FORM_COOKIE,
    PATH,
    ABrowser,
    FilledDep,
    PageRoute,
    checked,
    login_form,
    set_cookie,
    show,
    templates,
)
from fedcybgd.coordinator.db.paging import Page
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.services.agents import logins
from fedcybgd.coordinator.services.read import cards, lists, status

router = APIRouter(route_class=PageRoute, prefix=PATH, include_in_schema=False)
GOING, ENDED = 20, 5
"""Runs that the first page shows; all are on a page of their own"""
THEN = re.compile(rf"{PATH}(/[A-Za-z0-9._~-]+)*")

__all__ = ["COOKIE", "FORM_COOKIE", "router", "templates"]


@router.get("", dependencies=[OpenDep])
def page(request: Request, session: ReadDep, replica: ReplicaDep, waiting: WaitingDep, disks: DisksDep) -> Response:
    try:
        request.state.caller = logins.known(session, request.cookies.get(COOKIE, ""), address_of(request), now())
    except Unauthorized:
        return login_form(request)
    return _overview(request, session, replica, waiting, disks)


@router.get("/live", dependencies=[Depends(ABrowser())])
def live(request: Request, session: ReadDep, replica: ReplicaDep, waiting: WaitingDep, disks: DisksDep) -> Response:
    """The part of the page that changes."""
    return _overview(request, session, replica, waiting, disks, part=True)


@router.get("/stream", dependencies=[Depends(ABrowser())])
async def stream(request: Request, feed: FeedDep, last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None) -> Response:
    """What happens, as it does: the page that is open shows it at once."""
    return streamed(request, feed, last_event_id)


def _overview(request: Request, session: ReadDep, replica: ReplicaDep, waiting: WaitingDep, disks: DisksDep, **more: bool) -> Response:
    at = now()
    return show(
        request, "overview.html", here="overview", status=status.overview(session, at, replica, len(waiting), disks.names),
        going=cards.going(session, at, GOING), ended=lists.runs(session, Page(limit=ENDED), ended=True).items, **more,
    )  # fmt: skip


@router.post("", dependencies=[OpenDep])
def login(
    request: Request,
    session: WriteDep,
    key: Annotated[str, Form()] = "",
    form: Annotated[str, Form()] = "",
    then: Annotated[str, Form()] = "",
) -> Response:
    if not logins.is_form_token(form, request.cookies.get(FORM_COOKIE, "")):
        return login_form(request, "This form was not this page's, or has grown old. Try again.", 403, then)
    began = now()
    try:
        caller, token, ends = logins.begin(session, key.strip(), address_of(request), began)
    except Unauthorized as error:
        acts.login(session, request, request.state.caller, error.code)
        told = "That is not the key of an operator." if type(error) is Unauthorized else f"{error.message}."
        return login_form(request, told, 401, then)
    logins.end(session, request.cookies.get(COOKIE, ""))
    acts.login(session, request, caller)
    answer = RedirectResponse(then if THEN.fullmatch(then) else PATH, status_code=303)
    set_cookie(request, answer, COOKIE, token, int((ends - began).total_seconds()))
    answer.delete_cookie(FORM_COOKIE, path=PATH)
    return answer


@router.post("/logout", dependencies=[Depends(ABrowser())])
def logout(request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    logins.end(session, request.cookies.get(COOKIE, ""))
    answer = RedirectResponse(PATH, status_code=303)
    answer.delete_cookie(COOKIE, path=PATH)
    return answer
