"""`/v1/operators`: who steers this coordinator."""

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from fedcybgd.coordinator.api.deps import OwnerDep, SettingsDep, ViewerDep, now
from fedcybgd.coordinator.api.guard import bearer
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.db.models import Operator
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.coordinator.services.read import lists
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.operators import OperatorKeyAnswer, OperatorKeyRequest, OperatorRequest, OperatorView

router = APIRouter(route_class=DatabaseRoute, prefix="/operators", tags=["operators"], responses=errors(401, 403, 422))
owner = [OwnerDep]


@router.get("", summary="List operators", response_model=list[OperatorView], responses={200: PAGED}, dependencies=owner)
def list_operators(session: ReadDep, page: PageDep, response: Response) -> list[OperatorView]:
    """All operators by name, those that were revoked too, in pages."""
    return paged(response, lists.operators(session, page))


@router.post("", summary="Add an operator", status_code=201, response_model=OperatorKeyAnswer, responses=errors(409), dependencies=owner)
def add(body: OperatorRequest, session: WriteDep, settings: SettingsDep) -> OperatorKeyAnswer:
    """A name, a role, and a key that is shown this once."""
    holds = _holds(body.expires_in_s, settings)
    return _answer(*operators.add(session, body.name, Role(body.role), holds, now()))


@router.get("/me", summary="The operator that is asking", response_model=OperatorView, dependencies=[ViewerDep])
def me(request: Request, session: ReadDep) -> Operator:
    """Whose key it is, what it may do, and until when."""
    return operators.by_name(session, request.state.caller.name)


@router.post("/me/rotate", summary="Replace the operator's own key", response_model=OperatorKeyAnswer, dependencies=[ViewerDep])
def rotate_own(body: OperatorKeyRequest, request: Request, session: WriteDep, settings: SettingsDep) -> OperatorKeyAnswer:
    """A new key; the old one is void at once, and so is every browser that was logged in with it.

    The new one ends when the old one would have, at the latest; only an owner gets more, if he asks for it.
    """
    default = _holds(None, settings)
    return _answer(*operators.rotate_own(session, bearer(request), _span(body.expires_in_s), default, now()))


@router.post(
    "/{name}/rotate", summary="Replace an operator's key", response_model=OperatorKeyAnswer, responses=errors(404), dependencies=owner
)
def rotate(name: str, body: OperatorKeyRequest, session: WriteDep, settings: SettingsDep) -> OperatorKeyAnswer:
    """A new key; the old one is void at once, and so is every browser that was logged in with it."""
    return _answer(*operators.rotate(session, name, _holds(body.expires_in_s, settings), now()))


@router.post("/{name}/revoke", summary="Revoke an operator", response_model=OperatorView, responses=errors(404, 409), dependencies=owner)
def revoke(name: str, session: WriteDep) -> Operator:
    """Shut an operator out at once. The last owner cannot be revoked."""
    return operators.revoke(session, name, now())


def _holds(given: float | None, settings: Settings) -> timedelta | None:
    return _span(settings.operator_keys_hold_s if given is None else given)


def _span(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _answer(operator: Operator, key: str) -> OperatorKeyAnswer:
    return OperatorKeyAnswer(name=operator.name, role=operator.role, key=key, expires_at=operator.expires_at)
