"""`/admin`: one plain page that shows what is going on, live, behind the operator's key."""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from itsdangerous import BadSignature, TimestampSigner
from sqlalchemy.orm import Session

from fedcybgd.coordinator.api.deps import WaitingDep, now
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.errors import Unauthorized
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.read import status
from fedcybgd.shared.contract.views import AssignmentView, RunView

router = APIRouter(route_class=DatabaseRoute, prefix="/admin", include_in_schema=False)
templates = Jinja2Templates(Path(__file__).parent / "templates")
COOKIE = "fedcoord_session"
SESSION_S = 12 * 3600


def _signer(session: Session) -> TimestampSigner:
    # The key's hash signs the cookie: a new key ends all sessions, and no further secret has to be kept.
    secret = queries.operator_key_hash(session) or ""
    return TimestampSigner(hashlib.sha256(b"admin-session:" + secret.encode()).hexdigest())


def _is_operator(request: Request, session: Session) -> bool:
    try:
        return bool(_signer(session).unsign(request.cookies.get(COOKIE, ""), max_age=SESSION_S) == b"operator")
    except BadSignature:
        return False


@router.get("")
def page(request: Request, session: ReadDep) -> Response:
    if not _is_operator(request, session):
        return templates.TemplateResponse(request, "login.html", {"error": None})
    return templates.TemplateResponse(request, "admin.html", {})


@router.post("")
def login(request: Request, session: ReadDep, key: Annotated[str, Form()] = "") -> Response:
    try:
        operators.authenticate(session, key.strip())
    except Unauthorized:
        return templates.TemplateResponse(request, "login.html", {"error": "That is not the operator's key."}, status_code=401)
    answer = RedirectResponse("/admin", status_code=303)
    value = _signer(session).sign("operator").decode()
    answer.set_cookie(COOKIE, value, max_age=SESSION_S, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@router.post("/logout")
def logout() -> Response:
    answer = RedirectResponse("/admin", status_code=303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/live")
def live(request: Request, session: ReadDep, waiting: WaitingDep) -> Response:
    """The part of the page that changes; the page asks for it every other second."""
    if not _is_operator(request, session):
        return HTMLResponse("", status_code=401)
    overview = status.overview(session, now(), len(waiting))
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
