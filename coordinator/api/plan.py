"""`/v1/plan`: what a run would ask of every agent, before it is created."""

from typing import Annotated

from fastapi import APIRouter, Query

from fedcybgd.coordinator.api.deps import ViewerDep
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.operate import forecasts
from fedcybgd.shared.contract.plans import PlanView

router = APIRouter(route_class=DatabaseRoute, prefix="/plan", tags=["runs"], responses=errors(401, 403, 422), dependencies=[ViewerDep])


@router.post("", summary="Plan a run before it begins", response_model=PlanView, responses=errors(404, 409))
def plan(
    body: RunFile,
    session: ReadDep,
    tokens_per_s: Annotated[float | None, Query(gt=0, allow_inf_nan=False, description="speed of training of every agent")] = None,
    rows: Annotated[int | None, Query(ge=1, lt=2**40, description="rows of every agent")] = None,
) -> PlanView:
    """For each enrolled agent: peak memory, bytes down and up, codecs, hours, and why it cannot take part. Nothing is changed."""
    return forecasts.plan_run(session, body, tokens_per_s, rows)
