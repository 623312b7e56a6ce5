"""An agent asks for work that is not known as it is: all that is new of it is written in one transaction."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Text, bindparam, cast, exists, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.base import Database
from fedcybgd.coordinator.db.models import Agent, Readiness
from fedcybgd.coordinator.domain.agent import needs_seen
from fedcybgd.coordinator.services.agents import copies, identity
from fedcybgd.coordinator.services.states import agents as states
from fedcybgd.shared.contract.agents import DeclaredLimits

WAS_REFUSED = exists().where(Readiness.agent_id == Agent.id, cast(Readiness.refused, Text) != "[]", Readiness.fits.is_not(False))
"""It is not asked for something that may fit other limits."""
LOCKED = select(Agent, WAS_REFUSED).where(Agent.id == bindparam("agent")).with_for_update(of=Agent, key_share=True)


def came(
    database: Database,
    agent_id: str,
    daemon: str | None,
    limits: DeclaredLimits,
    clock: Callable[[], datetime],
    before: Callable[[Session], None],
) -> Agent:
    """The agent as it is from now on: which daemon has its key, that it is there, and what it allows training to take.

    Raises `AgentCopied` for a daemon that has the key no more: what it asks is no sign of life of the agent. `before` is what the
    transaction does first. Other limits of an agent that was passed over are left to its claim, which asks it again: rows of runs are
    locked before those of agents, and here that of the agent alone is.
    """
    with database.transaction() as session:
        before(session)
        agent, was_refused = session.execute(LOCKED, {"agent": agent_id}).one()
        identity.admit(agent)
        now, had, allowed = clock(), agent.daemon, agent.limits
        has_key = daemon is None or copies.has_key(session, agent, daemon, now)
        if has_key:
            if needs_seen(agent.state, agent.last_seen_at, now):
                states.seen(agent, now)
            if agent.limits != limits and not was_refused:
                agent.limits = limits
            # Where it is known without a daemon this is done anew when it asks there, so the first one is news to nobody.
            if (agent.daemon, agent.limits) != (had, allowed) and (had is not None or daemon is None):
                signals.forget(session, agent_id)
    if not has_key:
        copies.refuse(agent.name)
    return agent
