"""`/v1/models`: base models."""

from fastapi import APIRouter, Response

from fedcybgd.coordinator.api.deps import OperatorDep, ViewerDep, now
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.db.models import Model
from fedcybgd.coordinator.services.operate import deletion, models
from fedcybgd.coordinator.services.read import lists
from fedcybgd.shared.contract.operators import ModelRequest
from fedcybgd.shared.contract.views import ModelView

router = APIRouter(route_class=DatabaseRoute, prefix="/models", tags=["models"], responses=errors(401, 403, 422))


@router.post("", summary="Add a model", status_code=202, response_model=ModelView, responses=errors(409, 422), dependencies=[OperatorDep])
def add(body: ModelRequest, session: WriteDep) -> Model:
    """Begin to split a model into blocks; its state says when it is ready."""
    return models.add(session, body.name, body.source, now())


@router.get("", summary="List models", response_model=list[ModelView], responses={200: PAGED}, dependencies=[ViewerDep])
def list_models(session: ReadDep, page: PageDep, response: Response) -> list[ModelView]:
    """All models by name, in pages."""
    return paged(response, lists.models(session, page))


@router.post(
    "/{name}/delete", summary="Delete a model", status_code=204, response_class=Response, responses=errors(404, 409),
    dependencies=[OperatorDep],
)  # fmt: skip
def delete(name: str, session: WriteDep) -> Response:
    """A model that no run is of, also one that waits to be added."""
    deletion.delete_model(session, name, now())
    return Response(status_code=204)


@router.get("/{name}", summary="One model", response_model=ModelView, responses=errors(404), dependencies=[ViewerDep])
def get(name: str, session: ReadDep) -> Model:
    """A model with its blocks."""
    return models.by_name(session, name)
