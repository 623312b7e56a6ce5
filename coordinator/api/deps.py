"""What routes depend on: what the application holds, and who is asking."""

from typing import Annotated

from fastapi import Depends, Request

from fedcybgd.coordinator.api.guard import AnAgent, AnOperator, Anyone
from fedcybgd.coordinator.api.ready import Probe
from fedcybgd.coordinator.attendance import Attendance, Known
from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage import BlobStore, Uploads
from fedcybgd.coordinator.storage.full import FullDisks
from fedcybgd.coordinator.wakes.event_feed import EventFeed
from fedcybgd.coordinator.wakes.waiting_room import WaitingRoom
from fedcybgd.shared.contract.run_views import EventEntry
from fedcybgd.shared.host.counters import Counters


# Coroutines, though they wait for nothing: FastAPI would send each plain function to a thread, five times in every claim.
async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _request(request: Request) -> Request:
    return request


async def _store(request: Request) -> BlobStore:
    store: BlobStore = request.app.state.store
    return store


async def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


async def _disks(request: Request) -> FullDisks:
    disks: FullDisks = request.app.state.disks
    return disks


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _waiting(request: Request) -> WaitingRoom:
    room: WaitingRoom = request.app.state.waiting
    return room


async def _replica(request: Request) -> str:
    replica: str = request.app.state.replica
    return replica


async def _probe(request: Request) -> Probe:
    probe: Probe = request.app.state.probe
    return probe


async def _feed(request: Request) -> EventFeed[EventEntry]:
    feed: EventFeed[EventEntry] = request.app.state.feed
    return feed


async def _counters(request: Request) -> Counters:
    counters: Counters = request.app.state.counters
    return counters


async def _attendance(request: Request) -> Attendance:
    attendance: Attendance = request.app.state.attendance
    return attendance


DatabaseDep = Annotated[Database, Depends(_database)]
RequestDep = Annotated[Request, Depends(_request)]
"""For what stands around an endpoint, which may have a parameter of that kind itself"""
StoreDep = Annotated[BlobStore, Depends(_store)]
DisksDep = Annotated[FullDisks, Depends(_disks)]
UploadsDep = Annotated[Uploads, Depends(_uploads)]
SettingsDep = Annotated[Settings, Depends(_settings)]
WaitingDep = Annotated[WaitingRoom, Depends(_waiting)]
ProbeDep = Annotated[Probe, Depends(_probe)]
ReplicaDep = Annotated[str, Depends(_replica)]
"""The id of this process, among the coordinators on the database"""
FeedDep = Annotated[EventFeed[EventEntry], Depends(_feed)]
CountersDep = Annotated[Counters, Depends(_counters)]
AttendanceDep = Annotated[Attendance, Depends(_attendance)]
OpenDep = Depends(Anyone())
ViewerDep, OperatorDep, OwnerDep = (Depends(AnOperator(role)) for role in Role)
AgentDep = Annotated[Known, Depends(AnAgent())]
now = utcnow
