"""Agents whose quarantine is over are asked again."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import signals
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.coordinator.services.states import agents as states


def end(session: Session, now: datetime) -> None:
    """Let those out whose time has come: each may try once more."""
    over = session.scalars(select(Agent).where(Agent.quarantined_until <= now).order_by(Agent.id).with_for_update(key_share=True)).all()
    for agent in over:
        states.out_of_quarantine(agent)
        record(session, now, "info", "quarantine_over", f"{agent.name} may try again; if it fails, for longer", agent_id=agent.id)
    signals.invite(session, [agent.id for agent in over])
