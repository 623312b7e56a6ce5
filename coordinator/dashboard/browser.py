"""What all pages share: who looks, by the cookie; the form that proves it was ours; how a page, a part of one, or an error is shown."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.api import acts
from fedcybgd.coordinator.api.deps import now
from fedcybgd.coordinator.api.guard import Guard, address_of
from fedcybgd.coordinator.api.route import DatabaseRoute
from fedcybgd.coordinator.api.versions import Handler
from fedcybgd.coordinator.dashboard import writing
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.domain.caller import Caller
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.errors import CoordinatorError, Forbidden, Unauthorized
from fedcybgd.coordinator.services.agents import logins, operators
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.sizes import counted, in_units
from fedcybgd.shared.contract.words import problem_in_words

COOKIE = "fedcoord_session"
FORM_COOKIE = "fedcoord_form"
"""Of a browser that is not logged in yet: what the form sends along is made of it"""
PATH = "/admin"
FORM_S = 3600
templates = Jinja2Templates(Path(__file__).parent / "templates")
for _write in (writing.count, writing.long, writing.fixed, writing.percent, writing.moment, writing.coded, writing.seconds):
    templates.env.filters[_write.__name__] = _write
templates.env.filters |= {"size": in_units, "counted": counted}
DONE = {
    "started": "Started.", "paused": "Paused. What is being trained may still be sent, and is applied.", "resumed": "It goes on.",
    "cancelled": "Cancelled. What was applied stays, and can be exported.",
    "deleted": "Deleted. Blobs that only this needed go when their time is over.",
    "adding": "It is being split into blocks; its state says when it is ready, or why it cannot be added.",
    "rolled-back": "It is being taken back; it is paused, and its reason will say what was done. Resume it then.",
    "exporting": "The model is being put together; its files appear under Exports.",
    "renamed": "It has its new name.",
    "released": "Released: it is asked for work again at once.", "revoked": "Revoked: it is shut out, and what it held goes to others.",
}  # fmt: skip
"""What was done, by the word in the address after it"""


class FormForeign(Forbidden):
    code = "form_foreign"


class Filled(BaseModel):
    """What every form sends."""

    form: str = ""


FilledDep = Annotated[Filled, Form()]


class ABrowser(Guard):
    """Needs the cookie of a browser in which an operator is logged in, of this role or one that may do more."""

    def __init__(self, role: Role = Role.VIEWER) -> None:
        self.role, self.word = role, "login"

    async def admit(self, request: Request) -> None:
        token, address, database = request.cookies.get(COOKIE, ""), address_of(request), request.app.state.database
        who = await run_in_threadpool(_known, database, token, address)
        try:
            request.state.caller = operators.admitted(who, self.role)
        except operators.RoleTooLow as error:
            act = f"{request.method} {request.url.path}"
            await run_in_threadpool(acts.note_refusal, database, request, who, act, "", error.code)
            raise

    async def __call__(self) -> None: ...


def _known(database: Database, token: str, address: str) -> Caller:
    with database.reading() as session:
        return logins.known(session, token, address, now())


class PageRoute(DatabaseRoute):
    """A route whose refusals are pages for whoever asks for pages."""

    def get_route_handler(self) -> Handler:
        return _in_pages(super().get_route_handler())


def _in_pages(handler: Callable[[Request], Any]) -> Handler:
    async def handle(request: Request) -> Response:
        try:
            answer: Response = await handler(request)
        except (FedError, RequestValidationError) as error:
            if "text/html" not in request.headers.get("accept", ""):
                raise
            return _told(request, error)
        return answer

    return handle


def _told(request: Request, error: FedError | RequestValidationError) -> Response:
    if isinstance(error, Unauthorized):
        return login_form(request, None, 401)
    status = error.status if isinstance(error, CoordinatorError) else 422
    if isinstance(error, FedError):
        return refusal(request, error.code, error.message, status)
    problems = "; ".join(f"{problem['loc'][-1]} {problem_in_words(problem)}" for problem in error.errors()[:5])
    return refusal(request, "invalid_request", f"the form, or the address, says something that is not understood: {problems}", status)


def refusal(request: Request, code: str, message: str, status: int) -> Response:
    """The page of whoever asks for a page and does not get it, or for something to be done."""
    return templates.TemplateResponse(request, "error.html", {"message": message, "code": code}, status_code=status)


def show(request: Request, template: str, **values: Any) -> Response:
    """A page, or with `part=live` what changes of it."""
    caller: Caller = request.state.caller
    role = caller.role or Role.VIEWER
    shared = {
        "operator": caller, "form": logins.form_token(request.cookies.get(COOKIE, "")), "now": now(),
        "may_act": role.may_act_as(Role.OPERATOR), "may_own": role.may_act_as(Role.OWNER),
        "part": request.query_params.get("part") == "live", "did": DONE.get(request.query_params.get("did", "")),
    }  # fmt: skip
    return templates.TemplateResponse(request, template, {**shared, **values})


def checked(request: Request, filled: Filled) -> None:
    """Raise `FormForeign` unless the form was on a page of this browser."""
    if not logins.is_form_token(filled.form, request.cookies.get(COOKIE, "")):
        raise FormForeign("this form was not the page's: open /admin, and do it there")


def did(word: str, path: str) -> Response:
    """Back to a page, which says what was done."""
    return RedirectResponse(f"{PATH}{path}?did={word}", status_code=303)


def login_form(request: Request, error: str | None = None, status: int = 200, then: str = "") -> Response:
    """`then`: where somebody is to be who has logged in; by default the page that was asked for."""
    secret = secrets.token_urlsafe(16)
    then = request.url.path if request.method == "GET" and request.url.path.startswith(f"{PATH}/") else then
    given = {"error": error, "form": logins.form_token(secret), "then": then}
    answer = templates.TemplateResponse(request, "login.html", given, status_code=status)
    set_cookie(request, answer, FORM_COOKIE, secret, FORM_S)
    return answer


def set_cookie(request: Request, answer: Response, name: str, value: str, holds_s: int) -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(name, value, max_age=holds_s, path=PATH, httponly=True, samesite="strict", secure=secure)
