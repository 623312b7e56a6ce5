"""`/v1/agents`: enrolment, an agent's view of itself, and what operators do with agents."""

from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from fedcybgd.coordinator.api.assignments import DaemonHeading
from fedcybgd.coordinator.api.deps import AgentDep, OpenDep, OperatorDep, OwnerDep, SettingsDep, ViewerDep, WaitingDep, now
from fedcybgd.coordinator.api.paging import PAGED, PageDep, paged
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.db.models import Agent, EnrolmentToken
from fedcybgd.coordinator.services.agents import enrolment, identity, offers, presence
from fedcybgd.coordinator.services.operate import deletion
from fedcybgd.coordinator.services.operate.release import release as let_out
from fedcybgd.coordinator.services.operate.rename import rename as call_it
from fedcybgd.coordinator.services.operate.revoke import revoke as shut_out
from fedcybgd.coordinator.services.read import lists
from fedcybgd.coordinator.services.records import signing
from fedcybgd.coordinator.services.upkeep import refusals
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.agents import AgentSelf, EnrolAnswer, EnrolRequest, KeyRequest, NewKey, ReadinessReport
from fedcybgd.shared.contract.operators import AgentKeyRequest, AgentNameRequest, TokenAnswer, TokenRequest, TokenView
from fedcybgd.shared.contract.versions import VERSION, read
from fedcybgd.shared.contract.views import AgentView, ExposureView
from fedcybgd.shared.contract.words import ID, OFFERS

router = APIRouter(route_class=DatabaseRoute, tags=["agents"])


@router.post(
    "/enrolment-tokens", summary="Make an enrolment token", status_code=201, response_model=TokenAnswer,
    responses=errors(401, 403, 422), dependencies=[OwnerDep],
)  # fmt: skip
def create_token(body: TokenRequest, session: WriteDep) -> TokenAnswer:
    """A token with which one agent, or so many, may enrol before it expires."""
    return _token(session, *enrolment.create_token(session, now(), timedelta(seconds=body.expires_in_s), body.uses))


@router.get(
    "/enrolment-tokens", summary="List enrolment tokens", response_model=list[TokenView],
    responses={200: PAGED, **errors(401, 403, 422)}, dependencies=[OwnerDep],
)  # fmt: skip
def list_tokens(session: ReadDep, page: PageDep, response: Response) -> list[TokenView]:
    """All tokens, those that are spent too, the newest first, in pages; never their secrets."""
    return paged(response, lists.tokens(session, page))


@router.post(
    "/enrolment-tokens/{token_id}/withdraw", summary="Withdraw an enrolment token", status_code=204, response_class=Response,
    responses=errors(401, 403, 404, 422), dependencies=[OwnerDep],
)  # fmt: skip
def withdraw(token_id: Annotated[str, Path(pattern=ID)], session: WriteDep) -> Response:
    """Nobody enrols with it any more; who has, stays."""
    enrolment.withdraw(session, token_id, now())
    return Response(status_code=204)


@router.post(
    "/agents",
    summary="Enrol an agent",
    status_code=201,
    response_model=EnrolAnswer,
    responses={
        200: {"model": EnrolAnswer, "description": "It was said before: the same answer, and nothing is spent"},
        **errors(401, 409, 422),
    },
    dependencies=[OpenDep],
)
def enrol(body: EnrolRequest, request: Request, response: Response, session: WriteDep, settings: SettingsDep) -> EnrolAnswer:
    """Spend a token on an identity and a key."""
    if (before := enrolment.said_before(session, body)) is not None:
        response.status_code, request.state.repeats = 200, True
        return before
    return enrolment.enrol(session, body, now(), _holds(settings))


@router.get("/agents/me", summary="The agent that is asking", response_model=AgentSelf, responses=errors(401, 403, 422))
def me(
    agent: AgentDep, session: WriteDep, waiting: WaitingDep, settings: SettingsDep, response: Response, daemon: DaemonHeading = None
) -> AgentSelf:
    """Who the key belongs to, and which runs it may take part in. Where a daemon has worked with the key, a sign of life only if one asks."""
    response.headers[OFFERS] = waiting.offers
    presence.seen(session, agent.id, daemon, now())
    return offers.self_of(session, agent.id, now(), _holds(settings))


@router.put(
    "/agents/me/readiness", summary="Say of runs whether the agent's data fit", status_code=204, response_class=Response,
    responses=errors(401, 403, 422),
)  # fmt: skip
def say_ready(request: Request, body: ReadinessReport, agent: AgentDep, session: WriteDep) -> Response:
    """Facts of a check, for runs that are open to the agent. What fits again is asked for again."""
    refusals.report(session, agent.id, body.runs, now(), read(request.headers.get(VERSION)))
    return Response(status_code=204)


@router.post("/agents/me/key", summary="Rotate the agent's own key", response_model=NewKey, responses=errors(401, 403, 409, 422))
def rotate_own_key(agent: AgentDep, session: WriteDep, settings: SettingsDep, body: KeyRequest | None = None) -> NewKey:
    """A new key under the same identity; the old one is void at once. With a public key the agent signs from now on."""
    public_key = body.public_key if body is not None else None
    return NewKey(key=identity.rotate_key(session, agent.id, agent.key_hash, public_key, now(), _holds(settings)))


@router.get(
    "/agents",
    summary="List agents",
    response_model=list[AgentView],
    responses={200: PAGED, **errors(401, 403, 422)},
    dependencies=[ViewerDep],
)
def list_agents(
    session: ReadDep,
    page: PageDep,
    response: Response,
    state: Annotated[Literal["enrolled", "active", "silent", "revoked", "quarantined"] | None, Query(description="only those")] = None,
) -> list[AgentView]:
    """All agents by name, in pages."""
    return paged(response, lists.agents(session, page, state))


@router.get("/agents/{name}", summary="One agent", response_model=AgentView, responses=errors(401, 403, 404, 422), dependencies=[ViewerDep])
def get_agent(name: str, session: ReadDep) -> AgentView:
    """An agent by its name or id."""
    return lists.agent(session, name)


@router.post(
    "/agents/{name}/revoke",
    summary="Revoke an agent",
    response_model=AgentView,
    responses=errors(401, 403, 404, 409, 422),
    dependencies=[OperatorDep],
)
def revoke(name: str, session: WriteDep) -> Agent:
    """Shut an agent out at once; what it holds is given to others."""
    return shut_out(session, name, now())


@router.post(
    "/agents/{name}/release",
    summary="Release an agent from quarantine",
    response_model=AgentView,
    responses=errors(401, 403, 404, 422),
    dependencies=[OperatorDep],
)
def release(name: str, session: WriteDep) -> Agent:
    """Hold nothing against an agent any more, and ask it for work again at once."""
    return let_out(session, name, now())


@router.post(
    "/agents/{name}/rename", summary="Rename an agent", response_model=AgentView,
    responses=errors(401, 403, 404, 409, 422), dependencies=[OperatorDep],
)  # fmt: skip
def rename(name: str, body: AgentNameRequest, session: WriteDep) -> Agent:
    """Another name, and nothing else; refused as long as a run file names the agent."""
    return call_it(session, name, body.name, now())


@router.post(
    "/agents/{name}/delete", summary="Delete an agent", status_code=204, response_class=Response,
    responses=errors(401, 403, 404, 409, 422), dependencies=[OperatorDep],
)  # fmt: skip
def delete(name: str, session: WriteDep) -> Response:
    """An agent that was revoked and has worked in no run that is still there; its name is free again."""
    deletion.delete_agent(session, name, now())
    return Response(status_code=204)


@router.post(
    "/agents/{name}/reissue", summary="Give an agent another key", status_code=201, response_model=TokenAnswer,
    responses=errors(401, 403, 404, 422), dependencies=[OwnerDep],
)  # fmt: skip
def reissue(name: str, body: AgentKeyRequest, session: WriteDep) -> TokenAnswer:
    """Its key is void at once, whoever has it; the token lets its owner enrol it again as the same agent."""
    return _token(session, *enrolment.reissue(session, name, now(), timedelta(seconds=body.expires_in_s)))


@router.get(
    "/exposure",
    summary="The exposure ledger",
    response_model=list[ExposureView],
    responses={200: PAGED, **errors(401, 403, 404, 422)},
    dependencies=[ViewerDep],
)
def exposure(
    session: ReadDep,
    page: PageDep,
    response: Response,
    agent: Annotated[str | None, Query(description="name or id; all agents if left out")] = None,
) -> list[ExposureView]:
    """Which agent has received which block at which version and codec, newest first, in pages."""
    return paged(response, lists.exposure(session, agent, page))


def _holds(settings: Settings) -> timedelta | None:
    return None if settings.agent_keys_hold_s is None else timedelta(seconds=settings.agent_keys_hold_s)


def _token(session: Session, row: EnrolmentToken, token: str) -> TokenAnswer:
    key = signing.newest(session)
    return TokenAnswer(
        token=token, token_id=row.id, expires_at=row.expires_at, coordinator_key=key.fingerprint if key is not None else None
    )
