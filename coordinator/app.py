"""Makes the web application: routers, error handlers, and what lives as long as it does."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DataError, DBAPIError, TimeoutError
from starlette.exceptions import HTTPException

from fedcybgd.coordinator import common
from fedcybgd.coordinator.absence import Absence
from fedcybgd.coordinator.api import (
    agents,
    assignments,
    audit,
    event_stream,
    held_out,
    insight,
    metrics,
    model_uploads,
    models,
    operators,
    plan,
    runs,
    status,
)
from fedcybgd.coordinator.api.identity import Identified
from fedcybgd.coordinator.api.proofs import Proved, Prover
from fedcybgd.coordinator.api.ready import Probe
from fedcybgd.coordinator.api.recognise import Recognition
from fedcybgd.coordinator.api.responses import errors
from fedcybgd.coordinator.api.short_way import short_way
from fedcybgd.coordinator.api.shortages import answer_shortages
from fedcybgd.coordinator.api.versions import Versioned
from fedcybgd.coordinator.attendance import Attendance
from fedcybgd.coordinator.beating import Beating, leave
from fedcybgd.coordinator.dashboard import acting, downloads, files, look_pages, pages, run_pages
from fedcybgd.coordinator.dashboard.browser import PATH, refusal
from fedcybgd.coordinator.db.alone import wait_alone
from fedcybgd.coordinator.db.base import BESIDE, LISTENING, Database, utcnow
from fedcybgd.coordinator.db.outage import DatabaseAway, OutageLog, is_away
from fedcybgd.coordinator.db.signals import Signals
from fedcybgd.coordinator.domain.jobs.kinds import Lane
from fedcybgd.coordinator.domain.metrics import COUNTED
from fedcybgd.coordinator.domain.opening import Opening
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.home import bring_up, home_id, signing_secret, understood
from fedcybgd.coordinator.jobs.local import LocalJobs
from fedcybgd.coordinator.parts import MakeParts, Parts, local
from fedcybgd.coordinator.replays import Replays
from fedcybgd.coordinator.services.path import openings
from fedcybgd.coordinator.services.read import events
from fedcybgd.coordinator.services.records import instance, replicas
from fedcybgd.coordinator.services.records.audit import Bound
from fedcybgd.coordinator.services.upkeep import missing
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.storage.full import FullDisks
from fedcybgd.coordinator.sweeper import sweep, tell_of_refusals
from fedcybgd.coordinator.wakes.carried import carry
from fedcybgd.coordinator.wakes.event_feed import TOGETHER, EventFeed
from fedcybgd.coordinator.wakes.waiting_room import WaitingRoom
from fedcybgd.coordinator.walls.answers import answer as _answer
from fedcybgd.coordinator.walls.answers import answer_of
from fedcybgd.coordinator.walls.door import Doorkeeper
from fedcybgd.coordinator.walls.headings import Headed
from fedcybgd.coordinator.walls.rules import HONEST, HowOften
from fedcybgd.coordinator.walls.zero_copy import ZeroCopy
from fedcybgd.coordinator.webhook import Receiver, webhook_settings
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.run_views import EventEntry
from fedcybgd.shared.contract.words import API, problem_in_words
from fedcybgd.shared.host.counters import Counters
from fedcybgd.shared.host.watchdog import Watchdog

log = logging.getLogger("fedcoord")
ROUTERS = [
    module.router
    for module in (agents, operators, audit, assignments, models, model_uploads, plan, runs, insight, event_stream, held_out, status)
]


def create_app(settings: Settings, parts: MakeParts = local, bounds: HowOften = HONEST, watchdog: Watchdog | None = None) -> FastAPI:
    """The coordinator for `settings`, of these parts; its database is brought to the newest schema when it starts. `bounds`: how often somebody may call."""
    app = FastAPI(
        title="FedCyBGD coordinator", version=version("fedcybgd"), lifespan=_lifespan, docs_url=None, redoc_url=None,
        description="Federated fine-tuning of all parameters of a language model, one block at a time.",
    )  # fmt: skip
    app.state.settings = settings
    app.state.make_parts = parts
    app.state.watchdog = watchdog or Watchdog()
    app.state.refusals = Bound()
    app.state.refused = None  # why it does not start, where it does not
    app.state.counters = Counters(COUNTED)
    disks = app.state.disks = FullDisks(settings.blobs)
    app.state.outages = OutageLog(lambda: disks.lack(settings.home / "database"))
    answer_shortages(app)
    app.router.routes.append(short_way())
    app.routes.extend(_routes().routes)
    app.add_middleware(Doorkeeper, recognise=Recognition(), bounds=bounds, hosts=settings.names, through_proxies=settings.through_proxies)
    app.add_middleware(Headed)
    app.add_middleware(Versioned)
    app.add_middleware(Identified)
    app.add_middleware(Proved)
    app.add_middleware(ZeroCopy)
    app.add_exception_handler(FedError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(DataError, _impossible_value)
    for kind in (DBAPIError, TimeoutError):
        app.add_exception_handler(kind, _database_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unknown_error)
    return app


@functools.cache
def _routes() -> APIRouter:
    """Those of the API and of the pages, for every application of this process: what FastAPI makes of them takes a third of a second."""
    v1 = APIRouter(prefix=API)
    for router in ROUTERS:
        v1.include_router(router, responses=errors(400, 413, 429))  # by the walls, whatever the route is
    everything = APIRouter()
    for included in (v1, metrics.router, *(of.router for of in (pages, run_pages, look_pages, downloads, acting, files))):
        everything.include_router(included)
    return everything


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    settings.home.mkdir(parents=True, exist_ok=True)
    database = app.state.database = Database(settings.url, settings.at_once)
    parts: Parts = app.state.make_parts(settings, database)
    app.state.store, app.state.uploads, app.state.wakes = parts.store, parts.uploads, parts.wakes

    def waiting_for_an_agent() -> list[Opening]:
        with database.reading() as session:
            return openings.waiting(session, utcnow())

    waiting = app.state.waiting = WaitingRoom(waiting_for_an_agent)
    waiting.open()
    feed = app.state.feed = _feed(database)
    attendance = app.state.attendance = Attendance(database, parts.wakes.listens)
    app.state.probe = Probe(database, parts.store, waiting)
    app.state.prover = Prover(database, signing_secret(settings))
    app.state.threads = to_thread.current_default_thread_limiter()
    app.state.threads.total_tokens = settings.threads
    home = home_id(settings.home)
    absence = app.state.absence = Absence(database, timedelta(seconds=settings.sweep_every_s), home)
    try:
        with understood(settings):
            database.agree_on_time()
            bring_up(database, settings)
            with database.transaction() as session:
                wait_alone(session.connection())
                common.check(session, settings, home, utcnow())
                app.state.identity = instance.identity(session, utcnow())
                absence.begin(session)
                replica = app.state.replica = replicas.enter(session, home, utcnow(), settings.own_lanes)
            absence.watch()
            with database.transaction() as session:
                missing.tell(session, parts.store, utcnow())
                missing.tell_of_key(session, signing_secret(settings), utcnow())
                common.tell_of_connections(session, settings.at_once + BESIDE + LISTENING, utcnow())
    except CoordinatorError as error:
        app.state.refused = error
        raise
    replays = app.state.replays = Replays(began=utcnow().timestamp())
    jobs = app.state.jobs = LocalJobs(database, parts.new_engine, replica, app.state.disks.say, settings.own_lanes, settings.engines)

    def heard(signals: Signals) -> None:
        if signals.anew:
            attendance.forget_all()
            waiting.read_anew()
            jobs.wake(list(Lane))
            return
        if signals.forgotten:
            attendance.forget(signals.forgotten)
        if signals.holding:
            attendance.holds(signals.holding)
            waiting.wake(signals.holding)
        if signals.openings or signals.offered or signals.invited:
            waiting.changed(signals.offered, signals.invited)
        if signals.let_go:
            waiting.let_go(signals.let_go)
        if signals.offers:
            waiting.offers_changed()
        if signals.lanes:
            jobs.wake(signals.lanes)

    parts.wakes.hear(heard)
    carry(database, parts.wakes)
    database.counted = app.state.counters.add
    jobs.start()
    beating = Beating(
        database, replica, home, lambda: len(waiting), app.state.outages, settings.own_lanes,
        agreed=lambda now: replays.follow(now.timestamp()),
    )  # fmt: skip
    beating.start()
    sweeper = asyncio.create_task(
        sweep(
            settings,
            database,
            parts.store,
            parts.uploads,
            app.state.outages,
            app.state.disks,
            absence,
            waiting,
            attendance,
            replica,
            app.state.refusals,
            app.state.watchdog,
        )
    )
    tasks = [sweeper]
    if (webhook := webhook_settings(settings)) is not None:
        tasks.append(asyncio.create_task(Receiver(webhook, database, app.state.identity).tell(app.state.outages)))
    try:
        yield
    finally:
        app.state.watchdog.stopping()
        for task in tasks:
            task.cancel()
        feed.close()
        waiting.close()
        with contextlib.suppress(Exception):  # a database that is away now is told at the next start who is there
            await attendance.write()
        with contextlib.suppress(Exception):
            tell_of_refusals(database, app.state.refusals, at_once=True)
        jobs.stop()
        beating.stop()
        leave(database, replica)
        parts.wakes.close()
        database.close()


def _feed(database: Database) -> EventFeed[EventEntry]:
    def read(after: int) -> list[EventEntry]:
        with database.reading() as session:
            return events.after(session, after, TOGETHER)

    def newest() -> int:
        with database.reading() as session:
            return events.newest(session)

    return EventFeed(read, newest)


def _known_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FedError)
    status = error.status if isinstance(error, CoordinatorError) else 422
    if status >= 500 and status != 503:
        log.error("%s %s: %s", request.method, request.url.path, error.message)
    return answer_of(error)


def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [{"field": ".".join(str(p) for p in e["loc"]), "message": problem_in_words(e)} for e in error.errors()]
    message = "; ".join(f"{p['field']}: {p['message']}" for p in problems[:5])
    return _answer(422, "invalid_request", message, {"problems": problems[:50]})


def _impossible_value(_request: Request, _error: Exception) -> JSONResponse:
    # A name with a NUL in it, a number of a thousand digits: the database says no, and it is the caller's mistake.
    return _answer(422, "invalid_request", "the request holds a value that cannot be stored or looked for")


def _database_error(request: Request, error: Exception) -> JSONResponse:
    if not is_away(error):
        return _unknown_error(request, error)
    request.app.state.outages.say(error)
    return answer_of(DatabaseAway(error))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and request.url.path.startswith(f"{PATH}/") and "text/html" in request.headers.get("accept", ""):
        return refusal(request, "not_found", "there is no such page", 404)
    codes = {404: "not_found", 405: "method_not_allowed"}
    return _answer(error.status_code, codes.get(error.status_code, "http_error"), str(error.detail), None, **dict(error.headers or {}))


def _unknown_error(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "internal_error", "the coordinator failed at this request; its log says more. It is safe to repeat it")
