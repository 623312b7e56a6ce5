"""Uploads of which nothing can come any more: they go with the assignment, or with the agent that sent them; files of models with their upload."""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, Assignment, ModelUpload
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.storage.uploads import UploadKey
from fedcybgd.shared.contract.model_uploads import PREFIX


def over(session: Session, keys: Collection[UploadKey]) -> set[UploadKey]:
    """The uploads that nobody goes on with. An agent that lost its lease may get it again, unless another has it now."""
    of_models = {key for key in keys if key.owner.startswith(PREFIX)}
    return _of_models(session, of_models) | _of_agents(session, set(keys) - of_models)


def _of_models(session: Session, keys: Collection[UploadKey]) -> set[UploadKey]:
    found = session.execute(select(ModelUpload.id, ModelUpload.files).where(ModelUpload.id.in_({key.owner for key in keys})))
    known = {(row.id, file.digest) for row in found for file in row.files}
    return {key for key in keys if (key.owner, key.digest) not in known}


def _of_agents(session: Session, keys: Collection[UploadKey]) -> set[UploadKey]:
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
