"""Routes that open their transaction in the thread that runs them."""

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, get_args, get_origin

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session

from fedcybgd.coordinator.api import acts, signed
from fedcybgd.coordinator.api.deps import DatabaseDep, RequestDep
from fedcybgd.coordinator.api.guard import Guard
from fedcybgd.coordinator.api.versions import Handler, understanding
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.outage import was_overtaken
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import AgentMessage

TRIES = 3
"""Times that a transaction is begun which PostgreSQL undid for another's sake."""


class Access(Enum):
    """Marks a route's parameter as the session of its transaction."""

    READ = "read"
    WRITE = "write"


ReadDep = Annotated[Session, Access.READ]
WriteDep = Annotated[Session, Access.WRITE]


class DatabaseRoute(APIRoute):
    """Begins the transaction, runs the route and commits in one job of the thread pool, before the answer is sent.

    A dependency that yields a session would begin in one job and commit in a later one. In between it would hold the connection, and
    SQLite's writer lock, while it waits for a thread; and when all threads wait for that lock, none is left to let it go.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        wanted = {name: access for name, p in inspect.signature(endpoint).parameters.items() if (access := _access(p.annotation))}
        self.access = next(iter(wanted.values()), None)
        super().__init__(path, _in_one_job(endpoint, *wanted.popitem()) if wanted else endpoint, **options)
        assert not wanted, "one session is enough"

    def get_route_handler(self) -> Handler:
        return _guarded(guard_of(self), self._handler())

    def _handler(self) -> Handler:
        kinds = [kind for p in inspect.signature(self.endpoint).parameters.values() for kind in (p.annotation, *get_args(p.annotation))]
        said = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, AgentMessage)), None)
        handler = super().get_route_handler()
        return handler if said is None else understanding(said, handler)


def guard_of(route: APIRoute) -> Guard:
    """Who may use a route, by the one dependency that says so."""
    found = [call for call in _calls(route.dependant) if isinstance(call, Guard)]
    if len(found) != 1:
        raise TypeError(f"{route.path} must say by one dependency of coordinator/api/deps.py who may use it, not by {len(found)}")
    return found[0]


def _calls(dependant: Dependant) -> list[object]:
    return [call for child in dependant.dependencies for call in (child.call, *_calls(child))]


def _guarded(guard: Guard, handler: Handler) -> Handler:
    """The handler behind its guard: FastAPI would read and parse the body before it looks at dependencies."""

    async def handle(request: Request) -> Response:
        await guard.admit(request)
        return await handler(request)

    return handle


def _in_one_job(endpoint: Callable[..., Any], name: str, access: Access) -> Callable[..., Any]:
    """The endpoint with a database in place of its session, the parameter `name`."""
    if inspect.iscoroutinefunction(endpoint):
        raise TypeError(f"{endpoint.__qualname__} is a coroutine: it would hold its transaction while it waits; make it a plain function")

    def job(_database: Database, _request: Request, **values: Any) -> Any:
        for tries_left in reversed(range(TRIES)):
            try:
                with _database.transaction() if access is Access.WRITE else _database.reading() as session:
                    if access is Access.WRITE:
                        signed.spender(_request)(session)
                    answer = endpoint(**values, **{name: session})
                    if access is Access.WRITE:
                        acts.done(session, _request, values)
                    return answer
            except FedError as error:
                if access is Access.WRITE:
                    acts.refused(_database, _request, values, error)
                raise
            except Exception as error:
                if not was_overtaken(error) or not tries_left:
                    raise
        raise AssertionError("unreachable")

    made: Any = functools.update_wrapper(job, endpoint)
    del made.__wrapped__  # else its signature would be the endpoint's
    given = inspect.signature(endpoint)
    asked = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in given.parameters.values() if p.name != name]
    database = inspect.Parameter("_database", inspect.Parameter.KEYWORD_ONLY, annotation=DatabaseDep)
    request = inspect.Parameter("_request", inspect.Parameter.KEYWORD_ONLY, annotation=RequestDep)
    made.__signature__ = given.replace(parameters=[database, request, *asked])
    return job


def _access(annotation: Any) -> Access | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((mark for mark in get_args(annotation)[1:] if isinstance(mark, Access)), None)
