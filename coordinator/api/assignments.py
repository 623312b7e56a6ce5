"""`/v1/assignments`: the straight path as agents walk it."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from fedcybgd.coordinator.api import signed
from fedcybgd.coordinator.api.bodies import announced_length, hand_on
from fedcybgd.coordinator.api.deps import AgentDep, AttendanceDep, DatabaseDep, SettingsDep, StoreDep, UploadsDep, WaitingDep, now
from fedcybgd.coordinator.api.files import blob_response
from fedcybgd.coordinator.api.guard import still_an_agent
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep, WriteDep
from fedcybgd.coordinator.domain.long_poll import wait_s
from fedcybgd.coordinator.domain.opening import Claimant
from fedcybgd.coordinator.services.path import claim as decide
from fedcybgd.coordinator.services.path import lease, receive, serve, submit
from fedcybgd.coordinator.services.path import renew as renewals
from fedcybgd.coordinator.services.path.lease import Leased
from fedcybgd.coordinator.wakes.waiting_room import WaitingRoom
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.assignments import (
    AssignmentAnswer,
    DeltaReceipt,
    DeltaSubmission,
    LeasedAssignment,
    RenewAnswer,
    RenewRequest,
    ReturnRequest,
    UploadOffset,
)
from fedcybgd.shared.contract.digests import Digest
from fedcybgd.shared.contract.versions import VERSION, read
from fedcybgd.shared.contract.words import DAEMON, ELSEWHERE, ID, MAX_WAIT_S, OFFERS, WAIT

router = APIRouter(route_class=DatabaseRoute, prefix="/assignments", tags=["assignments"], responses=errors(401, 403, 422))
AssignmentId = Annotated[str, Path(pattern=ID)]
DAEMON_WORD = "^[0-9a-f]{16}$"
DaemonHeading = Annotated[str | None, Header(alias=DAEMON, pattern=DAEMON_WORD, description="which start of the agent's daemon asks")]


@router.post(
    "/claim",
    summary="Ask for work",
    response_model=LeasedAssignment,
    responses={204: {"description": "No work came up within `wait` seconds; ask again"}, **errors(409, 422, 503)},
)
async def claim(
    request: Request,
    body: ClaimRequest,
    agent: AgentDep,
    attendance: AttendanceDep,
    database: DatabaseDep,
    waiting: WaitingDep,
    settings: SettingsDep,
    response: Response,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for work before answering 204")] = 25,
    daemon: DaemonHeading = None,
) -> LeasedAssignment | Response:
    """Long poll: answers at once when there is work, else as soon as there is some. Headings say whether other runs are offered, and how long to wait next."""
    offers = waiting.offers
    response.headers[OFFERS] = offers
    deadline = asyncio.get_running_loop().time() + wait
    spend = signed.spender(request)
    other_limits = body.limits != agent.limits
    if other_limits or (daemon is not None and daemon != agent.daemon):
        await attendance.come(agent, daemon, body.limits, now, spend)
    else:
        await attendance.sign_in(agent, now())
    if waiting.stale:
        await waiting.refresh()
    speaks = read(request.headers.get(VERSION))
    place = waiting.enter(Claimant(agent.id, agent.name, body, speaks))
    look = agent.may_hold or agent.limits != body.limits or waiting.has_something_for(place, patient=wait > 0, anew=other_limits)
    failed = False
    try:
        while True:
            if look:
                waiting.looks(place)
                failed = True
                found = await run_in_threadpool(decide.ask, database, agent.id, body, now, spend, speaks)
                failed = False
                agent.limits, agent.may_hold = body.limits, isinstance(found, Leased) or found.holds
                if isinstance(found, Leased):
                    waiting.taken(found.assignment.assignment_id)
                    return found.assignment
                waiting.declined(place, found.awaited)
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return _nothing(waiting, settings.silent_after_s)
            if not await place.wait(left):
                return _nothing(waiting, settings.silent_after_s)
            if place.let_go or waiting.offers != offers:
                return _nothing(waiting, settings.silent_after_s)
            # Nobody would hear the answer of a claim whose caller is gone, and the lease would be lost on it.
            if waiting.closed or not waiting.holds(place) or await request.is_disconnected():
                return _nothing(waiting, settings.silent_after_s)
            look = True
    finally:
        waiting.leave(place, failed)


def _nothing(waiting: WaitingRoom, silent_after_s: float) -> Response:
    return Response(status_code=204, headers={OFFERS: waiting.offers, WAIT: f"{wait_s(len(waiting), silent_after_s):.0f}"})


@router.get("/{assignment_id}", summary="The state of an assignment", response_model=AssignmentAnswer, responses=errors(404))
def state(assignment_id: AssignmentId, agent: AgentDep, session: ReadDep) -> AssignmentAnswer:
    """What became of an assignment that this agent had."""
    return lease.state_of(session, assignment_id, agent.id)


@router.post("/{assignment_id}/renew", summary="Renew the lease", response_model=RenewAnswer, responses=errors(404, 409, 422))
def renew(assignment_id: AssignmentId, body: RenewRequest, agent: AgentDep, attendance: AttendanceDep, session: WriteDep) -> RenewAnswer:
    """Hold the assignment for another lease, and say how far the training is."""
    attendance.sign(agent, now())
    return renewals.renew(session, assignment_id, agent.id, body, now())


@router.post(
    "/{assignment_id}/return", summary="Give the assignment back", response_model=AssignmentAnswer, responses=errors(404, 409, 422)
)
def give_back(assignment_id: AssignmentId, body: ReturnRequest, agent: AgentDep, session: WriteDep) -> AssignmentAnswer:
    """Let go of an assignment, with the reason."""
    given = lease.give_back(session, assignment_id, agent.id, body, now())
    return AssignmentAnswer(assignment_id=given.id, state=given.state, reason=given.reason, attempt=given.attempt)


@router.get(
    "/{assignment_id}/shards/{digest}",
    summary="Fetch a shard, patch or file of the manifest",
    response_class=Response,
    responses={
        200: {"description": "The bytes", "content": {"application/octet-stream": {}}},
        206: {"description": "The range that was asked for"},
        304: {"description": "You have it already (If-None-Match)"},
        307: {"description": "It is at another host, to whoever says FedCyBGD-Elsewhere: yes"},
        416: {"description": "The range is outside the shard"},
        **errors(404, 409, 422, 503),
    },
)
def shard(
    request: Request,
    assignment_id: AssignmentId,
    digest: Digest,
    agent: AgentDep,
    database: DatabaseDep,
    store: StoreDep,
) -> Response:
    """Bytes by digest; `Range` resumes a transfer that was cut. Only what the manifest of a lease names that the agent holds."""
    elsewhere = request.headers.get(ELSEWHERE) == "yes"
    serving = serve.hand_out(database, store, assignment_id, agent.id, digest, now, elsewhere)

    async def count(amount: int) -> None:
        await run_in_threadpool(serving.count, amount)

    return blob_response(request, store, digest, count, serving.link)


@router.get(
    "/{assignment_id}/upload/{digest}",
    summary="How much of a delta has arrived",
    response_model=UploadOffset,
    responses=errors(404, 409, 422),
)
def upload_offset(
    assignment_id: AssignmentId, digest: Digest, agent: AgentDep, session: ReadDep, uploads: UploadsDep, store: StoreDep
) -> UploadOffset:
    """Where to go on with an upload, also after either side died."""
    return receive.offset(session, store, uploads, assignment_id, agent.id, digest)


@router.put(
    "/{assignment_id}/upload/{digest}",
    summary="Send bytes of a delta",
    response_model=UploadOffset,
    responses=errors(404, 409, 413, 422, 507),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)
async def upload(
    request: Request,
    assignment_id: AssignmentId,
    digest: Digest,
    agent: AgentDep,
    database: DatabaseDep,
    uploads: UploadsDep,
    offset: Annotated[int, Query(ge=0, description="where these bytes belong; must be what has arrived")] = 0,
) -> UploadOffset:
    """Append the body at `offset`. What arrived before a cut is kept."""
    whole = announced_length(request)
    receiving = await run_in_threadpool(receive.begin, database, uploads, assignment_id, agent.id, digest, offset, whole)

    async def write(data: bytes) -> None:
        await still_an_agent(request)
        await run_in_threadpool(receiving.append, data)

    try:
        await hand_on(request, write, uploads.best_piece)
    finally:
        ended = await run_in_threadpool(receiving.end)
    return ended


@router.post(
    "/{assignment_id}/delta",
    summary="Submit an uploaded delta",
    response_model=DeltaReceipt,
    status_code=202,
    responses=errors(404, 409, 422, 507),
)
def delta(
    assignment_id: AssignmentId, body: DeltaSubmission, agent: AgentDep, database: DatabaseDep, uploads: UploadsDep, store: StoreDep
) -> DeltaReceipt:
    """Once and only once: a repeat of (attempt, digest) gets the same answer, a stale attempt gets 409."""
    return submit.take(database, store, uploads, assignment_id, agent.id, body, now)
