"""`/admin`: one plain page that shows what is going on, live, behind an operator's key."""

import secrets
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.templating import Jinja2Templates
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.api import acts
from fedcybgd.coordinator.api.deps import DisksDep, OpenDep, WaitingDep, now
from fedcybgd.coordinator.api.guard import Guard, address_of
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.domain.caller import Caller
from fedcybgd.coordinator.errors import Forbidden, Unauthorized
from fedcybgd.coordinator.services.agents import logins
from fedcybgd.coordinator.services.read import status
from fedcybgd.shared.contract.views import AssignmentView, RunView

router = APIRouter(route_class=DatabaseRoute, prefix="/admin", include_in_schema=False)
templates = Jinja2Templates(Path(__file__).parent / "templates")
COOKIE = "fedcoord_session"
FORM_COOKIE = "fedcoord_form"
"""Of a browser that is not logged in yet: what the form sends along is made of it"""
PATH = "/admin"
FORM_S = 3600


class FormForeign(Forbidden):
    code = "form_foreign"


class ABrowser(Guard):
    """Needs the cookie of a browser that is logged in."""

    word = "login"

    async def admit(self, request: Request) -> None:
        token, address = request.cookies.get(COOKIE, ""), address_of(request)
        request.state.caller = await run_in_threadpool(_known, request.app.state.database, token, address)

    async def __call__(self) -> None: ...


def _known(database: Database, token: str, address: str) -> Caller:
    with database.reading() as session:
        return logins.known(session, token, address, now())


@router.get("", dependencies=[OpenDep])
def page(request: Request, session: ReadDep) -> Response:
    token = request.cookies.get(COOKIE, "")
    try:
        caller = logins.known(session, token, address_of(request), now())
    except Unauthorized:
        return _login_form(request)
    return templates.TemplateResponse(request, "admin.html", {"operator": caller, "form": logins.form_token(token)})


@router.post("", dependencies=[OpenDep])
def login(request: Request, session: WriteDep, key: Annotated[str, Form()] = "", form: Annotated[str, Form()] = "") -> Response:
    if not logins.is_form_token(form, request.cookies.get(FORM_COOKIE, "")):
        return _login_form(request, "This form was not this page's, or has grown old. Try again.", 403)
    began = now()
    try:
        caller, token, ends = logins.begin(session, key.strip(), address_of(request), began)
    except Unauthorized as error:
        acts.login(session, request, request.state.caller, error.code)
        told = "That is not the key of an operator." if type(error) is Unauthorized else f"{error.message}."
        return _login_form(request, told, 401)
    logins.end(session, request.cookies.get(COOKIE, ""))
    acts.login(session, request, caller)
    answer = RedirectResponse(PATH, status_code=303)
    _set(request, answer, COOKIE, token, int((ends - began).total_seconds()))
    answer.delete_cookie(FORM_COOKIE, path=PATH)
    return answer


@router.post("/logout", dependencies=[Depends(ABrowser())])
def logout(request: Request, session: WriteDep, form: Annotated[str, Form()] = "") -> Response:
    token = request.cookies.get(COOKIE, "")
    if not logins.is_form_token(form, token):
        raise FormForeign("this form was not the page's: open /admin, and log out there")
    logins.end(session, token)
    answer = RedirectResponse(PATH, status_code=303)
    answer.delete_cookie(COOKIE, path=PATH)
    return answer


def _login_form(request: Request, error: str | None = None, status: int = 200) -> Response:
    secret = secrets.token_urlsafe(16)
    answer = templates.TemplateResponse(request, "login.html", {"error": error, "form": logins.form_token(secret)}, status_code=status)
    _set(request, answer, FORM_COOKIE, secret, FORM_S)
    return answer


def _set(request: Request, answer: Response, name: str, value: str, holds_s: int) -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(name, value, max_age=holds_s, path=PATH, httponly=True, samesite="strict", secure=secure)


@router.get("/live", dependencies=[Depends(ABrowser())])
def live(request: Request, session: ReadDep, waiting: WaitingDep, disks: DisksDep) -> Response:
    """The part of the page that changes; the page asks for it every other second."""
    overview = status.overview(session, now(), len(waiting), disks.names)
    chosen = [run for run in overview.runs if run.state in ("running", "paused")] or overview.runs[:1]
    runs = [status.run_status(session, run.id, now(), members=False) for run in chosen[:5]]
    shown = {"status": overview, "runs": [(run, busy_blocks(run)) for run in runs], "now": now()}
    return templates.TemplateResponse(request, "live.html", shown)


def busy_blocks(run: RunView) -> dict[str, list[AssignmentView]]:
    """The blocks of a run that wait or are being trained, each with its assignments."""
    found = defaultdict(list)
    for assignment in run.current:
        if assignment.state in ("pending", "leased", "submitted"):
            found[assignment.block].append(assignment)
    return dict(found)
