"""`/v1/status`, `/v1/health` and `/v1/key`."""

from importlib.metadata import version

from fastapi import APIRouter

from fedcybgd.coordinator.api.deps import DisksDep, OpenDep, ProbeDep, ReplicaDep, ViewerDep, WaitingDep, now
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.route import DatabaseRoute, ReadDep
from fedcybgd.coordinator.services.read import status
from fedcybgd.shared.contract.agents import Health
from fedcybgd.shared.contract.provenance import SigningKeyView
from fedcybgd.shared.contract.views import StatusView

router = APIRouter(route_class=DatabaseRoute, tags=["status"])


@router.get("/status", summary="The state of everything", response_model=StatusView, responses=errors(401, 403), dependencies=[ViewerDep])
def overview(session: ReadDep, replica: ReplicaDep, waiting: WaitingDep, disks: DisksDep) -> StatusView:
    """What needs somebody; runs, rounds, agents, leases, bytes, jobs and the last errors."""
    return status.overview(session, now(), replica, len(waiting), disks.names)


@router.get("/health", summary="Whether the coordinator is up", response_model=Health, responses=errors(400), dependencies=[OpenDep])
async def health(disks: DisksDep) -> Health:
    """For load balancers and `fedagent check`; needs no key. It waits for no thread and asks no database."""
    return Health(status="ok", version=version("fedcybgd"), full_disks=disks.names)


@router.get(
    "/health/ready", summary="Whether the coordinator can serve", response_model=Health, responses=errors(400, 503), dependencies=[OpenDep]
)
async def ready(disks: DisksDep, probe: ProbeDep) -> Health:
    """For balancers that choose among several: 503 where its database or its storage is out of reach, or it stops. Needs no key."""
    await probe.check()
    return Health(status="ok", version=version("fedcybgd"), full_disks=disks.names)


@router.get(
    "/key",
    summary="The key that provenance files are signed with",
    response_model=SigningKeyView,
    responses=errors(404),
    dependencies=[OpenDep],
)
def key(session: ReadDep) -> SigningKeyView:
    """Public, and to be compared by another way: what is signed with it was signed by this coordinator."""
    return status.signing_key(session)
