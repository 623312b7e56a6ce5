"""What needs somebody: the worst first, several of a kind as one, each with what to do about it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from fedcybgd.coordinator.db.models import Agent, Event, Job, Model, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.domain.model import ModelState
from fedcybgd.coordinator.domain.run import RUN, RunState, is_wanted
from fedcybgd.coordinator.services.read import pace
from fedcybgd.coordinator.services.records import replicas
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import AlarmView, JobView

NAMED, RUNS, LOOKED_AT = 5, 20, 200
RECENT = timedelta(hours=24)
"""What was longer ago is history"""
REJECTED = "delta_rejected"
HANGS_S = 60.0
FAILED = (RunState.FAILED,)
LATER = aliased(Run)
UNDER_WAY = select(Run.id).where(Run.state.not_in([state for state in RunState if RUN.is_final(state)]))
FAILED_JOBS = select(func.count()).select_from(Job).where(Job.state == JobState.FAILED, Job.subject.in_(UNDER_WAY))
"""What a run that is over still needed nobody mends."""


def raised(session: Session, now: datetime, jobs: dict[str, int], running: Sequence[JobView], full_disks: Sequence[str]) -> list[AlarmView]:
    found = [
        *_disks(full_disks),
        *_runs(session, now),
        *_jobs(session, jobs, running),
        *_models(session),
        *_lanes(session, now),
        *_rejections(session, now),
        *_agents(session),
    ]
    return sorted(found, key=lambda alarm: alarm.level != "error")


def _disks(full: Sequence[str]) -> Iterator[AlarmView]:
    if full:
        text = f"no room is left on the disk of {', '.join(full)}"
        advice = "Make room or mount a larger volume there; what waits goes on by itself. FEDCOORD_KEEP_VERSIONS lets older deltas go."
        yield AlarmView(level="error", code="disk_full", message=text, advice=advice, count=len(full))


def _runs(session: Session, now: datetime) -> Iterator[AlarmView]:
    going = select(Run).where(Run.state.in_((RunState.PAUSED, RunState.RUNNING))).order_by(Run.created_at.desc()).limit(RUNS)
    for run in session.scalars(going):
        if run.state == RunState.PAUSED:
            asked = is_wanted(run.reason)
            advice = (
                "It goes on by itself as soon as somebody is there."
                if run.waits_for_agents
                else "Mend what the reason says, then resume it, or cancel it."
            )
            yield AlarmView(
                level="warning" if asked else "error", code="run_paused", message=f"{run.name} is paused: {run.reason or 'no reason is kept'}",
                advice="Resume it when you want it to go on." if asked else advice, count=1, run=run.name, run_id=run.id,
            )  # fmt: skip
        elif (still := pace.of_run(session, run, now).still) is not None:
            yield AlarmView(
                level="warning", code="run_stands_still", message=f"{run.name} stands still: {still}", count=1, run=run.name, run_id=run.id,
                advice="Look at the timeline of the run: who has the block, and since when. Whoever is silent must be started again.",
            )  # fmt: skip
    again = exists().where(LATER.name == Run.name, LATER.created_at > Run.created_at)
    failed = select(Run).where(Run.state.in_(FAILED), Run.ended_at >= now - RECENT, ~again).order_by(Run.created_at.desc()).limit(NAMED)
    for run in session.scalars(failed):  # who has tried again under the same name has seen why
        yield AlarmView(
            level="error", code="run_failed", message=f"{run.name} failed: {run.reason or 'no reason is kept'}", count=1, run=run.name,
            run_id=run.id, since=run.ended_at, advice="A failed run is over. Mend what the reason says, and create it again.",
        )  # fmt: skip


def _jobs(session: Session, jobs: dict[str, int], running: Sequence[JobView]) -> Iterator[AlarmView]:
    for job in running:
        if job.still_s >= HANGS_S:
            yield AlarmView(
                level="warning", code="engine_hangs", count=1, advice="After two minutes it is ended and begun again by itself.",
                message=f"{job.kind} of {job.of} has used no processor time for {job.still_s:.0f} s",
            )  # fmt: skip
    if jobs.get("failed", 0) and (failed := session.scalar(FAILED_JOBS) or 0):
        yield AlarmView(
            level="warning", code="jobs_failed", count=failed,
            message="a job of the engine has failed" if failed == 1 else f"{failed} jobs of the engine have failed",
            advice="The events say of each why; to resume a paused run tries its jobs again.",
        )  # fmt: skip


def _models(session: Session) -> Iterator[AlarmView]:
    """A model that was added at another try is there."""
    for which, code, one, more, what, advice in (
        (Model.state == ModelState.FAILED, "models_failed", "was", "were", "not added", "why: add it again, or delete it."),
        (
            (Model.state == ModelState.ADDING) & Model.reason.is_not(None), "models_wait", "waits", "wait", "to be added",
            "what for: make room, or delete it.",
        ),
    ):  # fmt: skip
        if names := session.scalars(select(Model.name).where(which).order_by(Model.created_at.desc()).limit(NAMED)).all():
            count = session.scalar(select(func.count()).select_from(Model).where(which)) or len(names)
            yield AlarmView(
                level="warning", code=code, count=count, advice=f"The page of models says {advice}",
                message=f"{f'a model {one}' if count == 1 else f'{count} models {more}'} {what}: {_listed(names, count)}",
            )  # fmt: skip


def _lanes(session: Session, now: datetime) -> Iterator[AlarmView]:
    """Jobs that nobody is there for."""
    waiting = select(Job.lane, func.count(), func.min(Job.created_at)).where(Job.state == JobState.QUEUED).group_by(Job.lane)
    for lane, count, since in session.execute(waiting).all():
        if lane not in replicas.lanes_done(session, now):
            yield AlarmView(
                level="error", code="lane_unattended", count=count, since=since,
                message=f"{counted(count, 'job')} {'waits' if count == 1 else 'wait'} in the lane {lane}, and no process is there that does them",
                advice=f"Start `fedcoord engine --lanes {lane}`, or a coordinator with FEDCOORD_LANES=all.",
            )  # fmt: skip


def _rejections(session: Session, now: datetime) -> Iterator[AlarmView]:
    """By run: the newest ones, and not older than a day."""
    newest = (
        select(Event.at, Event.message, Event.run_id, Agent.name, Run.name)
        .join(Run, Run.id == Event.run_id)
        .join(Agent, Agent.id == Event.agent_id, isouter=True)
        .where(Event.code == REJECTED, Event.at >= now - RECENT)
        .order_by(Event.id.desc())
        .limit(LOOKED_AT)
    )
    rejected = defaultdict(list)
    for at, message, run_id, agent, run in session.execute(newest):
        rejected[run_id, run].append((at, message, agent))
    for (run_id, run), them in rejected.items():
        who, number = sorted({agent for _, _, agent in them if agent}), counted(len(them), "delta")
        yield AlarmView(
            level="warning", code="deltas_rejected", count=len(them), run=run, run_id=run_id, since=them[-1][0],
            message=f"{number} of {run} {'was' if len(them) == 1 else 'were'} rejected within a day, of {_listed(who, len(who))}; the last: {them[0][1]}",
            advice="They are no part of the model. If it is always the same agent, look at its data, or revoke it.",
        )  # fmt: skip


def _agents(session: Session) -> Iterator[AlarmView]:
    silent, quarantined = Agent.state == AgentState.SILENT, Agent.quarantined_until.is_not(None) & (Agent.state == AgentState.ACTIVE)
    for which, code, word, advice in (
        (silent, "agents_silent", "silent", "Start them again (`fedagent run`), or revoke those that will not come back."),
        (quarantined, "agents_quarantined", "in quarantine", "It ends by itself. Release one that was mended."),
    ):
        names = session.scalars(select(Agent.name).where(which).order_by(Agent.last_seen_at.desc()).limit(NAMED)).all()
        if names:
            count = session.scalar(select(func.count()).select_from(Agent).where(which)) or len(names)
            are = "agent is" if count == 1 else "agents are"
            yield AlarmView(
                level="warning", code=code, message=f"{count} {are} {word}: {_listed(names, count)}", advice=advice, count=count
            )


def _listed(names: Sequence[str], count: int) -> str:
    more = f" and {count - len(names[:NAMED])} more" if count > len(names[:NAMED]) else ""
    return (", ".join(names[:NAMED]) or "nobody that is known") + more
