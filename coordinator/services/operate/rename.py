"""Calls an agent something else."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries, signals
from fedcybgd.coordinator.db.models import Agent, Run
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.coordinator.services.agents.enrolment import NameTaken
from fedcybgd.coordinator.services.records.events import record


class AgentNamed(Conflict):
    code = "agent_named"


def rename(session: Session, name_or_id: str, to: str, now: datetime) -> Agent:
    """Change an agent's name and nothing else: id, key, what it holds and has done stay its own.

    A run file goes by names and is never rewritten, so an agent that one names keeps its name until that run is deleted.
    Raises `AgentNamed` and `NameTaken`.
    """
    agent = queries.agent_by_name(session, name_or_id)
    if agent.name == to:
        return agent
    session.refresh(agent, with_for_update=True)
    if runs := [run.name for run in session.execute(select(Run.name, Run.spec)) if agent.name in _chosen(run.spec)]:
        raise AgentNamed(f"run files name {agent.name} under `agents`, and could not be followed: those of {', '.join(sorted(runs)[:8])}")
    taken = NameTaken(f"there is an agent named {to!r} already; think of another name")
    if session.scalar(select(Agent.id).where((Agent.name == to) | (Agent.id == to))) is not None:
        raise taken
    before, agent.name = agent.name, to
    try:
        session.flush()
    except IntegrityError as error:  # somebody took the name a moment ago
        raise taken from error
    signals.forget(session, agent.id)
    signals.let_go(session, agent.id)  # what waits, waits under the former name
    record(session, now, "info", "agent_renamed", f"agent {before} is {to} from now on", agent_id=agent.id)
    return agent


def _chosen(spec: RunFile) -> list[str]:
    return [] if spec.agents == "all" else spec.agents
