"""Two copies of one agent's home have one key: the one that came last has it while it is there, and the other is told."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.coordinator.services.records.events import record_at_most

REMEMBERED = 20
"""Former daemons of an agent: a copy that was started before so many others is taken for a new one"""


class AgentCopied(Conflict):
    """Another daemon has begun to work with the caller's key since: it is a copy of its home. It would take the lease back and forth."""

    code = "agent_copied"


def has_key(session: Session, agent: Agent, daemon: str, now: datetime) -> bool:
    """Whether the daemon that asks has the key of an agent whose row is locked. One that is new has it from now on.

    One that had it before gets it back once nothing has been heard of the other; until then it is said once, as an event.
    """
    former = dict(agent.former_daemons)
    if agent.state == AgentState.SILENT:
        former.pop(daemon, None)
    if daemon in former:
        if not former[daemon]:
            agent.former_daemons = former | {daemon: True}
            text = (
                f"two daemons ask with the key of {agent.name}: its home was copied, or moved and not stopped. "
                "The one that was started first gets nothing while the other is there"
            )
            agent.last_error, agent.last_error_at = f"agent_copied: {text}", now
            record_at_most(session, now, "warning", "agent_copied", text, agent.id)
        return False
    if agent.daemon != daemon:
        if agent.daemon is not None:
            former[agent.daemon] = False
        agent.daemon, agent.former_daemons = daemon, dict(list(former.items())[-REMEMBERED:])
    return True


def refuse(name: str) -> None:
    raise AgentCopied(
        f"another daemon works as {name} since: two copies of one home cannot share a key. Stop one of them: the other goes on when nothing "
        "is heard of that for a while, or at once when it is started again; or enrol one as an agent of its own"
    )
