"""Log lines that a transaction has to say. They are written once it is committed: what was rolled back did not happen."""

import logging
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from fedcybgd.shared.host.logs import ABOUT

log = logging.getLogger("fedcoord.events")
_KEY = "lines"


@dataclass(frozen=True)
class EventMessage:
    """An event, as a line of the log."""

    level: str
    code: str
    message: str
    about: dict[str, object] = field(default_factory=dict)
    """run, round, block, agent, as far as it is about them"""


def of(session: Session) -> list[EventMessage]:
    """What the transaction of a session has to say so far."""
    found: list[EventMessage] = session.info.setdefault(_KEY, [])
    return found


def say(session: Session, line: EventMessage) -> None:
    of(session).append(line)


def write(lines: list[EventMessage]) -> None:
    for line in lines:
        log.log(getattr(logging, line.level.upper()), "%s: %s", line.code, line.message, extra={ABOUT: {"event": line.code, **line.about}})
