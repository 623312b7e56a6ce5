"""What operators do on pages: each through the same service as in the API, and in the audit log."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.api.deps import now
from fedcybgd.coordinator.api.route import WriteDep
from fedcybgd.coordinator.dashboard.browser import PATH, ABrowser, Filled, FilledDep, PageRoute, checked, did, show
from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import EnrolmentToken
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.services.agents import enrolment
from fedcybgd.coordinator.services.operate import deletion, exports, model_uploads, models, restorations, rollback, steer
from fedcybgd.coordinator.services.operate.release import release as let_out
from fedcybgd.coordinator.services.operate.rename import rename as call_it
from fedcybgd.coordinator.services.operate.revoke import revoke as shut_out
from fedcybgd.coordinator.services.records import signing
from fedcybgd.shared.contract.operators import AgentNameRequest, ModelRequest, name_of
from fedcybgd.shared.contract.words import ExportForm, problem_in_words

router = APIRouter(route_class=PageRoute, prefix=PATH, include_in_schema=False)
operator, owner = [Depends(ABrowser(Role.OPERATOR))], [Depends(ABrowser(Role.OWNER))]
TOKEN_HOLDS = timedelta(days=1)
BEST = "best"


class StartFilled(Filled):
    anyway: bool = False


class RollbackFilled(Filled):
    after_rounds: str = ""


class ModelFilled(Filled):
    source: str = ""
    name: str = ""


class RenameFilled(Filled):
    name: str = ""


class NameUnclear(Invalid):
    code = "name_unclear"


class ModelUnclear(Invalid):
    code = "model_unclear"


class ExportFilled(Filled):
    form_of_export: ExportForm = "merged"


@router.post("/runs/{run}/start", dependencies=operator)
def start(run: str, request: Request, body: Annotated[StartFilled, Form()], session: WriteDep) -> Response:
    checked(request, body)
    return did("started", f"/runs/{steer.start(session, run, now(), body.anyway).id}")


@router.post("/runs/{run}/pause", dependencies=operator)
def pause(run: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    return did("paused", f"/runs/{steer.pause(session, run, now()).id}")


@router.post("/runs/{run}/resume", dependencies=operator)
def resume(run: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    return did("resumed", f"/runs/{steer.resume(session, run, now()).id}")


@router.post("/runs/{run}/cancel", dependencies=operator)
def cancel(run: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    return did("cancelled", f"/runs/{steer.cancel(session, run, now()).id}")


@router.post("/runs/{run}/delete", dependencies=operator)
def delete_run(run: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    deletion.delete_run(session, run, now())
    return did("deleted", "/runs")


@router.post("/models/{name}/delete", dependencies=operator)
def delete_model(name: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    deletion.delete_model(session, name, now())
    return did("deleted", "/models")


@router.post("/runs/{run}/exports/{export_id}/delete", dependencies=operator)
def delete_export(run: str, export_id: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    deletion.delete_export(session, run, export_id, now())
    return did("deleted", f"/runs/{queries.run_id(session, run)}")


@router.post("/held-out/{digest}/delete", dependencies=operator)
def delete_held_out(digest: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    deletion.delete_held_out(session, digest, now())
    return did("deleted", "/models")


@router.post("/model-uploads/{upload_id}/delete", dependencies=operator)
def discard_upload(upload_id: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    model_uploads.discard(session, upload_id, now())
    return did("deleted", "/models")


@router.post("/models", dependencies=operator)
def add_model(request: Request, body: Annotated[ModelFilled, Form()], session: WriteDep) -> Response:
    """From a directory on this machine, or a hub; its name is the last part of that where none is given."""
    checked(request, body)
    try:
        asked = ModelRequest(name=body.name.strip() or name_of(body.source.strip()), source=body.source.strip())
    except ValidationError as error:
        raise ModelUnclear(f"{error.errors()[0]['loc'][-1]}: {problem_in_words(error.errors()[0])}") from error
    models.add(session, asked.name, asked.source, now())
    return did("adding", "/models")


@router.post("/agents/{name}/delete", dependencies=operator)
def delete_agent(name: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    deletion.delete_agent(session, name, now())
    return did("deleted", "/agents")


@router.post("/runs/{run}/rollback", dependencies=operator)
def take_back(run: str, request: Request, body: Annotated[RollbackFilled, Form()], session: WriteDep) -> Response:
    """To what it was after some rounds, or when it scored best."""
    checked(request, body)
    said = body.after_rounds.strip()
    if said != BEST and not (said.isascii() and said.isdigit() and len(said) < 10):
        raise restorations.RoundUnknown(f"{said!r:.60} is no number of rounds; say 0 or more, or {BEST}")
    return did("rolled-back", f"/runs/{rollback.rollback(session, run, None if said == BEST else int(said), now()).id}")


@router.post("/runs/{run}/export", dependencies=operator)
def export(run: str, request: Request, body: Annotated[ExportFilled, Form()], session: WriteDep) -> Response:
    checked(request, body)
    exports.request_export(session, run, now(), body.form_of_export)
    return did("exporting", f"/runs/{queries.run_id(session, run)}")


@router.post("/agents/{name}/release", dependencies=operator)
def release(name: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    return did("released", f"/agents/{let_out(session, name, now()).id}")


@router.post("/agents/{name}/rename", dependencies=operator)
def rename(name: str, request: Request, body: Annotated[RenameFilled, Form()], session: WriteDep) -> Response:
    checked(request, body)
    try:
        wanted = AgentNameRequest(name=body.name.strip())
    except ValidationError as error:
        raise NameUnclear(
            "a name has letters, digits, dots, dashes and underscores, a hundred at most, and begins with a letter or digit"
        ) from error
    return did("renamed", f"/agents/{call_it(session, name, wanted.name, now()).id}")


@router.post("/agents/{name}/revoke", dependencies=operator)
def revoke(name: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    checked(request, body)
    return did("revoked", f"/agents/{shut_out(session, name, now()).id}")


@router.post("/agents/{name}/reissue", dependencies=owner)
def reissue(name: str, request: Request, body: FilledDep, session: WriteDep) -> Response:
    """Its key is void at once; the token for another one is shown this once."""
    checked(request, body)
    return _token(request, session, *enrolment.reissue(session, name, now(), TOKEN_HOLDS), name)


@router.post("/tokens", dependencies=owner)
def token(request: Request, body: FilledDep, session: WriteDep) -> Response:
    """For one new agent; shown this once."""
    checked(request, body)
    return _token(request, session, *enrolment.create_token(session, now(), TOKEN_HOLDS), None)


def _token(request: Request, session: Session, row: EnrolmentToken, secret: str, agent: str | None) -> Response:
    key = signing.newest(session)
    fingerprint = key.fingerprint if key is not None else None
    return show(request, "token.html", here="agents", token=secret, row=row, agent=agent, fingerprint=fingerprint)
