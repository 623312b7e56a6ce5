"""Uploads of which nothing can come any more: they go with the assignment, or with the agent that sent them."""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.storage.uploads import UploadKey


def over(session: Session, keys: Collection[UploadKey]) -> set[UploadKey]:
    """The uploads that nobody goes on with. An agent that lost its lease may get it again, unless another has it now."""
    places = {key.place for key in keys}
    rows = {row.id: row for row in session.execute(
        select(Assignment.id, Assignment.state, Assignment.agent_id).where(Assignment.id.in_(places))
    )}  # fmt: skip
    owners = select(Agent.id).where(Agent.id.in_({key.owner for key in keys}), Agent.state != AgentState.REVOKED)
    known = set(session.scalars(owners))
    mine = {
        key
        for key in keys
        if key.owner in known
        and (row := rows.get(key.place)) is not None
        and (row.state == AssignmentState.PENDING or (row.state == AssignmentState.LEASED and row.agent_id == key.owner))
    }
    return set(keys) - mine
