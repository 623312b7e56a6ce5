"""`/v1/held-out`: held-out files, uploaded by their digest, listed and deleted."""

import hashlib

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.api import acts
from fedcybgd.coordinator.api.deps import DatabaseDep, OperatorDep, SettingsDep, StoreDep, ViewerDep, now
from fedcybgd.coordinator.api.guard import still_an_operator
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.errors import TooLarge
from fedcybgd.coordinator.services.operate import deletion, held_out
from fedcybgd.coordinator.storage import BlobCorrupt
from fedcybgd.shared.contract.digests import Digest
from fedcybgd.shared.contract.operators import HeldOutAnswer, HeldOutView

router = APIRouter(route_class=DatabaseRoute, prefix="/held-out", tags=["runs"], responses=errors(401, 403, 422))


@router.get("", summary="List held-out files", response_model=list[HeldOutView], responses={200: PAGED}, dependencies=[ViewerDep])
def list_files(session: ReadDep, page: PageDep, response: Response) -> list[HeldOutView]:
    """The newest first, in pages: each with the runs that are scored on it."""
    return paged(response, held_out.listed(session, page))


@router.post(
    "/{digest}/delete", summary="Delete a held-out file", status_code=204, response_class=Response, responses=errors(404, 409),
    dependencies=[OperatorDep],
)  # fmt: skip
def delete(digest: Digest, session: WriteDep) -> Response:
    """One that no run is scored on."""
    deletion.delete_held_out(session, digest, now())
    return Response(status_code=204)


@router.put(
    "/{digest}", summary="Upload a held-out file", response_model=HeldOutAnswer, responses=errors(413, 507), dependencies=[OperatorDep],
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)  # fmt: skip
async def put(
    request: Request,
    digest: Digest,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
    name: str = Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$", description="file name; its suffix tells the format"),
) -> HeldOutAnswer:
    """Rows that are the coordinator's own, to score the model on. The same bytes may be uploaded again."""
    limit = settings.max_held_out_bytes
    too_large = TooLarge(f"a held-out file has at most {limit} bytes here (FEDCOORD_MAX_HELD_OUT_BYTES)", limit=limit)
    if int(request.headers.get("content-length", "0") or 0) > limit:
        raise too_large
    hashing = hashlib.sha256()
    with store.writer() as writer:
        async for chunk in request.stream():
            hashing.update(chunk)
            await run_in_threadpool(writer.write, chunk)
            if writer.size > limit:
                raise too_large
        if hashing.hexdigest() != digest:  # raised before the end of the block, so that nothing is kept
            raise BlobCorrupt(f"the bytes have digest {hashing.hexdigest()}, not {digest}")

    def save() -> None:
        with database.transaction() as session:
            still_an_operator(session, request, Role.OPERATOR)  # else the bytes are garbage: no row names them
            held_out.keep(session, digest, name, writer.size, now())
            acts.upload(session, request, f"{digest} {name}")

    await run_in_threadpool(save)
    return HeldOutAnswer(digest=digest, size=writer.size)
