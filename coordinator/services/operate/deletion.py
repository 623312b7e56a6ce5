"""Deletes what is over: runs that have ended, exports, agents that were revoked, models and held-out files that no run has. Blobs of these go as garbage."""

from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Base
from fedcybgd.coordinator.db.models import Agent, Assignment, Event, HeldOut, Job, Model, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobKind, JobState
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.errors import Conflict, NotFound
from fedcybgd.coordinator.services.operate import held_out, models
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.sizes import counted

UNUSED = timedelta(days=1)
"""A held-out file that no run has is kept for so long: it comes before the run that it is for."""
NAMED = 8
"""Runs that are named in a refusal."""


class RunNotOver(Conflict):
    code = "run_not_over"


class RunBusy(Conflict):
    """An agent or the engine is still at it."""

    code = "run_busy"


class RunNameShared(Conflict):
    """What is gone for good is not guessed by its name."""

    code = "run_name_shared"


class ModelInUse(Conflict):
    code = "model_in_use"


class AgentInUse(Conflict):
    code = "agent_in_use"


class ExportBusy(Conflict):
    """The engine is still at it."""

    code = "export_busy"


class HeldOutInUse(Conflict):
    code = "held_out_in_use"


def delete_run(session: Session, name: str, now: datetime) -> None:
    """All that is written of a run that has ended: rounds, visits, scores, ledgers, events. Raises `RunNotOver`, `RunBusy`."""
    run = queries.run_by_name(session, name, lock=True)
    if run.id != name and (number := session.scalar(select(func.count()).where(Run.name == run.name)) or 0) > 1:
        raise RunNameShared(f"{number} runs are named {run.name}; say the id of the one that is meant (the newest is {run.id})")
    if not RUN.is_final(run.state):
        raise RunNotOver(f"run {run.name} ({run.id}) is {run.state}; cancel it before it is deleted")
    _forget_run(session, run, now)


def delete_ended_run(session: Session, before: datetime, now: datetime) -> bool:
    """The run that ended first, if that was before then and nobody is at it; whether there was one."""
    over = Run.state.in_([state for state in RunState if RUN.is_final(state)]) & (Run.ended_at < before)
    looked = select(Run).order_by(Run.ended_at, Run.id).limit(1).with_for_update(skip_locked=True)
    while (run := session.scalar(looked.where(over))) is not None:  # one at a time: there may be thousands
        if _busy(session, run, now) is None:
            _forget_run(session, run, now)
            return True
        over &= (Run.ended_at > run.ended_at) | ((Run.ended_at == run.ended_at) & (Run.id > run.id))
    return False


def _forget_run(session: Session, run: Run, now: datetime) -> None:
    if (why := _busy(session, run, now)) is not None:
        raise RunBusy(f"{why} run {run.name} ({run.id}); delete it in a moment")
    text = (
        f"run {run.name} ({run.id}) of {run.created_at:%Y-%m-%d} was deleted; it was {run.state} after {counted(run.rounds_done, 'round')}"
    )
    # Before the events of the run go: SQLite gives the id of the last one again, and who goes on by id would not hear of it.
    record(session, now, "warning", "run_deleted", text)
    session.flush()
    session.execute(update(Run).where(Run.anchor_of == run.id).values(anchor_of=None))
    session.execute(delete(Event).where(Event.run_id == run.id))
    session.execute(delete(Job).where(Job.subject == run.id))
    scored_on = run.spec.evaluate.digest if run.spec.evaluate is not None else None
    _delete_what_names(session, Run, run.id)
    session.flush()
    if scored_on is not None:
        _forget_held_out(session, scored_on, now)


def _busy(session: Session, run: Run, now: datetime) -> str | None:
    """Who is at a run that has ended; its jobs are held, so that none is begun."""
    states = session.scalars(select(Job.state).where(Job.subject == run.id).order_by(Job.id).with_for_update()).all()
    if JobState.RUNNING in states:
        return "the coordinator still works for"
    leased = (Assignment.run_id == run.id) & (Assignment.state == AssignmentState.LEASED) & (Assignment.lease_expires_at > now)
    if session.scalar(select(func.count()).where(leased)):
        return "an agent still holds an assignment of"
    return None


def _forget_held_out(session: Session, digest: str, now: datetime) -> None:
    """The file that a deleted run was scored on, if no other run is."""
    file = session.get(HeldOut, digest, with_for_update=True)  # a run that is created meanwhile waits, and finds none
    if file is not None and file.created_at < now - UNUSED and not held_out.runs_on(session, [digest]):
        session.delete(file)


def delete_held_out(session: Session, digest: str, now: datetime) -> None:
    """A held-out file that no run is scored on, nor was. Raises `HeldOutInUse`."""
    file = session.get(HeldOut, digest, with_for_update=True)  # as above
    if file is None:
        raise NotFound(f"there is no held-out file {digest!r}; `fedcoord held-out list` lists them")
    if names := held_out.runs_on(session, [digest])[digest]:
        more = " and more" if len(names) > NAMED else ""
        raise HeldOutInUse(f"held-out file {file.name} is that of runs: {', '.join(names[:NAMED])}{more}. Delete these first")
    session.delete(file)
    record(session, now, "warning", "held_out_deleted", f"held-out file {file.name} ({digest}) was deleted")


def delete_export(session: Session, name: str, export_id: str, now: datetime) -> None:
    """An export of a run, also one that waits to be made. Raises `ExportBusy`."""
    run = queries.run_by_name(session, name)
    job = session.get(Job, export_id, with_for_update=True)
    if job is None or job.subject != run.id or job.kind != JobKind.EXPORT:
        raise NotFound(f"run {run.name} has no export {export_id!r}; `fedcoord exports list` lists them")
    if job.state == JobState.RUNNING:
        raise ExportBusy(f"the export {export_id} of run {run.name} is being made; delete it in a moment")
    session.delete(job)
    record(session, now, "warning", "export_deleted", f"the export {export_id} of run {run.name} was deleted", run_id=run.id)


def delete_model(session: Session, name: str, now: datetime) -> None:
    """A model that no run is of, also one that waits to be added. Raises `ModelInUse`."""
    model = models.by_name(session, name)
    # Its jobs first, as whoever writes what came of one; a run that is created meanwhile waits, and finds no model.
    states = session.scalars(select(Job.state).where(Job.subject == model.id).order_by(Job.id).with_for_update()).all()
    session.refresh(model, with_for_update=True)
    if JobState.RUNNING in states:
        raise ModelInUse(f"model {model.name} is being added at this moment; delete it when that is over")
    if names := _names(session, Run.model_id == model.id):
        raise ModelInUse(f"model {model.name} has runs: {names}. Delete these first")
    session.execute(delete(Job).where(Job.subject == model.id))
    text = f"model {model.name} ({model.id}), from {model.source}, was deleted"
    _delete_what_names(session, Model, model.id)
    record(session, now, "warning", "model_deleted", text)


def delete_agent(session: Session, name: str, now: datetime) -> None:
    """An agent that was revoked, with all that is written of it, if no run has had its work. Raises `AgentInUse`."""
    agent = queries.agent_by_name(session, name)
    session.refresh(agent, with_for_update=True)
    if agent.state != AgentState.REVOKED:
        raise AgentInUse(f"agent {agent.name} is {agent.state}; revoke it before it is deleted")
    worked = select(Assignment.run_id).where(or_(Assignment.agent_id == agent.id, Assignment.meant_for == agent.id))
    if names := _names(session, Run.id.in_(worked)):
        raise AgentInUse(
            f"agent {agent.name} has worked in runs: {names}. What it has had and sent is told as long as these are; delete them first"
        )
    record(session, now, "warning", "agent_deleted", f"agent {agent.name} ({agent.id}) was deleted")  # first, as with a run
    session.flush()
    session.execute(delete(Event).where(Event.agent_id == agent.id))
    _delete_what_names(session, Agent, agent.id)


def _names(session: Session, of: object) -> str:
    """Names of runs, the newest first; empty if there is none."""
    found = session.scalars(select(Run.name).where(of).order_by(Run.created_at.desc()).limit(NAMED + 1)).all()  # type: ignore[arg-type]
    more = " and more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _delete_what_names(session: Session, kind: type[Base], id: str) -> None:
    """A row by its id, after all rows of all tables that refer to it: a new table is not forgotten."""
    session.flush()
    key = Base.metadata.tables[kind.__tablename__].c.id
    for table in Base.metadata.sorted_tables[::-1]:
        for reference in table.foreign_keys:
            if reference.column is key:
                session.execute(delete(table).where(reference.parent == id))
    session.execute(delete(key.table).where(key == id))
