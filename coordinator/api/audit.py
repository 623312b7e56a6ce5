"""`/v1/audit`: who did what."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from fedcybgd.coordinator.api.deps import ViewerDep
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep
from fedcybgd.coordinator.services.read import lists
from fedcybgd.shared.contract.operators import AuditEntry

router = APIRouter(route_class=DatabaseRoute, prefix="/audit", tags=["operators"], responses=errors(401, 403, 422))


@router.get("", summary="The audit log", response_model=list[AuditEntry], responses={200: PAGED}, dependencies=[ViewerDep])
def list_acts(
    session: ReadDep,
    page: PageDep,
    response: Response,
    newest_first: Annotated[bool, Query(description="for reading; a chain is checked from its beginning")] = False,
    name: Annotated[str | None, Query(max_length=100, description="of the operator or agent who acted")] = None,
) -> list[AuditEntry]:
    """Every act, the oldest first, in pages; each entry holds the hash of the one before."""
    return paged(response, lists.acts(session, page, newest_first, name))
