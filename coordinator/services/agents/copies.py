"""Two copies of one agent's home have one key: the one that came last has it while it is there, and the other is told."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import agents as states

REMEMBERED = 20
"""Former daemons of an agent: a copy that was started before so many others is taken for a new one"""


class AgentCopied(Conflict):
    """Another daemon has begun to work with the caller's key since: it is a copy of its home. It would take the lease back and forth."""

    code = "agent_copied"


def came(database: Database, agent_id: str, daemon: str, clock: Callable[[], datetime], before: Callable[[Session], None]) -> None:
    """A daemon asks for work that is not known to have the key: it is new, and has it from now on.

    One that had it before gets it back once nothing has been heard of the other, else `AgentCopied` is raised: what it asks is no sign of
    life of the agent. `before` is what the transaction does first.
    """
    with database.transaction() as session:
        before(session)
        agent = session.get_one(Agent, agent_id, with_for_update={"key_share": True})
        former = dict(agent.former_daemons)
        if agent.state == AgentState.SILENT:
            former.pop(daemon, None)
        is_former, name = daemon in former, agent.name
        if is_former and not former[daemon]:
            agent.former_daemons = former | {daemon: True}
            text = (
                f"two daemons ask with the key of {name}: its home was copied, or moved and not stopped. "
                "The one that was started first gets nothing while the other is there"
            )
            agent.last_error, agent.last_error_at = f"agent_copied: {text}", clock()
            record(session, clock(), "warning", "agent_copied", text, agent_id=agent_id)
        elif not is_former and agent.daemon != daemon:
            if agent.daemon is not None:
                former[agent.daemon] = False
            agent.daemon, agent.former_daemons = daemon, dict(list(former.items())[-REMEMBERED:])
            if agent.state == AgentState.SILENT:
                states.seen(agent, clock())  # with the key: else the other one could have it back
            signals.forget(session, agent_id)
    if is_former:
        raise AgentCopied(
            f"another daemon works as {name} since: two copies of one home cannot share a key. Stop one of them: the other goes on when nothing "
            "is heard of that for a while, or at once when it is started again; or enrol one as an agent of its own"
        )
