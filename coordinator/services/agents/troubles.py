"""What holds an agent up while it keeps its visit: told to the operator once, and no attempt is lost by it."""

from datetime import datetime

from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, Assignment
from fedcybgd.coordinator.services.records.events import record_at_most
from fedcybgd.shared.contract.assignments import Trouble

MEANINGS = {
    "unreachable": "transfers were cut",
    "not_a_coordinator": "something else answered in the coordinator's place",
    "proxy_body_limit": "a proxy on the way refused an upload: raise its limit of body sizes",
    "another_coordinator": "another coordinator answered at this address",
    "coordinator_key_differs": "what answered was not signed with a key that its owner believes",
}


def in_words(trouble: Trouble) -> str:
    facts = [f"status {trouble.status}"] if trouble.status is not None else []
    facts += [f"{trouble.bytes:,} bytes"] if trouble.bytes is not None else []
    return MEANINGS[trouble.code] + (f" ({', '.join(facts)})" if facts else "")


def tell(session: Session, assignment: Assignment, trouble: Trouble, now: datetime) -> None:
    """Make it an event of the run and the agent's last error."""
    agent = session.get_one(Agent, assignment.agent_id)
    text = in_words(trouble)
    agent.last_error, agent.last_error_at = f"{trouble.code}: {text}", now
    record_at_most(session, now, "warning", trouble.code, f"{agent.name} on {assignment.called}: {text}", agent.id, assignment.run_id)
