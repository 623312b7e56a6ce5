"""`/v1/model-uploads`: models that come from another machine than the coordinator's."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.api import acts
from fedcybgd.coordinator.api.bodies import announced_length, hand_on
from fedcybgd.coordinator.api.deps import DatabaseDep, OperatorDep, SettingsDep, StoreDep, UploadsDep, ViewerDep, now
from fedcybgd.coordinator.api.guard import still_an_operator
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.db.models import Model
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.services.operate import model_arrival, model_uploads
from fedcybgd.shared.contract.assignments import UploadOffset
from fedcybgd.shared.contract.digests import Digest
from fedcybgd.shared.contract.model_uploads import ModelUploadEntry, ModelUploadRequest, ModelUploadView
from fedcybgd.shared.contract.views import ModelView
from fedcybgd.shared.contract.words import ID

router = APIRouter(route_class=DatabaseRoute, prefix="/model-uploads", tags=["models"], responses=errors(401, 403, 422))
UploadId = Annotated[str, Path(pattern=ID)]


@router.post(
    "", summary="Begin to upload a model, or go on", response_model=ModelUploadView, responses=errors(409, 413), dependencies=[OperatorDep]
)
def begin(
    request: Request, body: ModelUploadRequest, session: WriteDep, store: StoreDep, uploads: UploadsDep, settings: SettingsDep
) -> ModelUploadView:
    """Announce all files. The same name and files are the same upload: the answer says what has arrived of each, also after a restart."""
    upload = model_uploads.begin(session, store, body, request.state.caller.name, settings.max_model_bytes, now())
    return model_uploads.view(upload, store, uploads)


@router.get("", summary="List uploads of models", response_model=list[ModelUploadEntry], responses={200: PAGED}, dependencies=[ViewerDep])
def list_uploads(session: ReadDep, page: PageDep, response: Response) -> list[ModelUploadEntry]:
    """Those under way, the newest first, in pages."""
    return paged(response, model_uploads.listed(session, page))


@router.get(
    "/{upload_id}", summary="What has arrived of a model", response_model=ModelUploadView, responses=errors(404), dependencies=[ViewerDep]
)
def get(upload_id: UploadId, session: ReadDep, store: StoreDep, uploads: UploadsDep) -> ModelUploadView:
    """Of each file where to go on."""
    return model_uploads.view(model_uploads.get(session, upload_id), store, uploads)


@router.put(
    "/{upload_id}/{digest}",
    summary="Send bytes of a file of a model",
    response_model=UploadOffset,
    responses=errors(404, 409, 413, 507),
    dependencies=[OperatorDep],
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)
async def put(
    request: Request,
    upload_id: UploadId,
    digest: Digest,
    database: DatabaseDep,
    store: StoreDep,
    uploads: UploadsDep,
    offset: Annotated[int, Query(ge=0, description="where these bytes belong; must be what has arrived")] = 0,
) -> UploadOffset:
    """Append the body at `offset`. What arrived before a cut is kept; with the last byte the file is checked."""
    whole = announced_length(request)
    receiving = await run_in_threadpool(model_arrival.begin, database, store, uploads, upload_id, digest, offset, whole, now())

    def may(session: Session) -> None:
        still_an_operator(session, request, Role.OPERATOR)

    def note(session: Session, what: str) -> None:
        acts.upload(session, request, what)

    async def write(data: bytes) -> None:
        await run_in_threadpool(receiving.append, data, may)

    if not receiving.complete:
        await hand_on(request, write, uploads.best_piece)
    return await run_in_threadpool(receiving.end, may, note, now)


@router.post(
    "/{upload_id}/add",
    summary="Add a model that has arrived",
    status_code=202,
    response_model=ModelView,
    responses=errors(404, 409),
    dependencies=[OperatorDep],
)
def add(upload_id: UploadId, session: WriteDep, store: StoreDep, uploads: UploadsDep) -> Model:
    """Begin to split it into blocks, as any model; its state says when it is ready."""
    return model_uploads.add(session, store, uploads, upload_id, now())


@router.post(
    "/{upload_id}/delete", summary="Discard an upload of a model", status_code=204, response_class=Response, responses=errors(404),
    dependencies=[OperatorDep],
)  # fmt: skip
def delete(upload_id: UploadId, session: WriteDep) -> Response:
    """What has arrived of it is not kept."""
    model_uploads.discard(session, upload_id, now())
    return Response(status_code=204)
