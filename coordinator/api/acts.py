"""What goes into the audit log of a request: every act of an operator, and those of agents that change who may what."""

from collections.abc import Mapping

from fastapi import Request
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.domain.caller import Caller
from fedcybgd.coordinator.services.records import audit
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import API

OF_AGENTS = {f"POST {API}/agents", f"POST {API}/agents/me/key"}
"""The rest of what agents do, and they ask all day, is in the runs' own history."""
LOGIN = "POST /admin"
NAMING = ("name", "agent", "after_rounds")
"""Fields of a body that say what is meant, and are no secret"""


def done(session: Session, request: Request, values: Mapping[str, object]) -> None:
    """Note an act, last in its transaction."""
    caller, act = _caller(request), _act(request)
    if getattr(request.state, "repeats", False):
        return  # what was done stands there already
    if caller.kind == "operator" or act in OF_AGENTS:
        audit.write(session, utcnow(), caller, act, _subject(request, values))


def refused(database: Database, request: Request, values: Mapping[str, object], error: FedError) -> None:
    """Note that something was asked for and not done; of too many of one caller in a minute only how many there were."""
    caller, act = _caller(request), _act(request)
    if caller.kind == "operator" or act in OF_AGENTS:
        note_refusal(database, request, caller, act, _subject(request, values), error.code)


def note_refusal(database: Database, request: Request, caller: Caller, act: str, subject: str, code: str) -> None:
    now = utcnow()
    if (outcome := _bound(request).outcome(caller, code, now)) is not None:
        with database.transaction() as session:
            audit.write(session, now, caller, act, subject, outcome)


def login(session: Session, request: Request, caller: Caller, code: str | None = None) -> None:
    """Note that a browser was logged in, or, with a `code`, that it was not."""
    now = utcnow()
    outcome = "done" if code is None else _bound(request).outcome(caller, code, now)
    if outcome is not None:
        audit.write(session, now, caller, LOGIN, outcome=outcome)


def upload(session: Session, request: Request, name: str) -> None:
    """Note a file that came as a stream."""
    audit.write(session, utcnow(), _caller(request), _act(request), name)


def _bound(request: Request) -> audit.Bound:
    bound: audit.Bound = request.app.state.refusals
    return bound


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _act(request: Request) -> str:
    """As its route is written: whoever chooses a name does not choose what an act is called."""
    own: str = request.scope["route"].path  # without what the routers that it stands in begin with
    before = request.url.path.split("/")[: -own.count("/")]
    return f"{request.method} {'/'.join(before)}{own}"


def _subject(request: Request, values: Mapping[str, object]) -> str:
    """What stands in the path, and what the body names."""
    named = (getattr(values.get("body"), field, None) for field in NAMING)
    return " ".join([*map(str, request.path_params.values()), *(str(value) for value in named if isinstance(value, str | int))])
