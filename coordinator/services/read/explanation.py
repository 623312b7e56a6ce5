"""Explains a run: where it stands and why, what it waits for, and what somebody can do about it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Event, Job, Run
from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.domain.opening import Claimant, Opening, consents
from fedcybgd.coordinator.domain.outlook import OutlookKind
from fedcybgd.coordinator.domain.run import RUN, RunState, is_wanted
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.coordinator.services.agents.troubles import in_words
from fedcybgd.coordinator.services.path import openings, outlook
from fedcybgd.coordinator.services.read import diagnosis
from fedcybgd.coordinator.services.records import replicas
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.explanations import ExplanationView, SymptomView, WaitView
from fedcybgd.shared.contract.sizes import counted

NAMED = 5
"""Of agents that wait for work and get none of this run, so many by name"""
SHOWN = 50
"""Assignments of one round that are told of"""
DOES_NOT_FIT = "does_not_fit"
# Statements are made once: that costs more than asking.
BUSY_ROWS = (
    select(
        Assignment.blocks, Assignment.state, Assignment.attempt, Assignment.progress, Assignment.progressed_at, Assignment.lease_expires_at,
        Assignment.submitted_at, Agent.name,
    )
    .join(Agent, Agent.id == Assignment.agent_id)
    .where(
        Assignment.run_id == bindparam("run"), Assignment.round == bindparam("round"),
        Assignment.state.in_((AssignmentState.LEASED, AssignmentState.SUBMITTED)),
    )
    .order_by(Assignment.seat, Assignment.id)
    .limit(SHOWN)
)  # fmt: skip
JOB_ROWS = (
    select(Job.kind, Job.state, Job.lane, Job.created_at, Job.started_at, Job.tries)
    .where(Job.subject == bindparam("run"), Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
    .order_by(Job.created_at, Job.id)
    .limit(SHOWN)
)


def explain(session: Session, name: str, claimants: Sequence[Claimant], now: datetime) -> ExplanationView:
    """Of a run; `claimants` are the agents that wait for work at this coordinator."""
    run = queries.run_by_name(session, name)
    waits = list(_waits(session, run, claimants, now))
    text, advice = _stands(session, run, waits)
    found = diagnosis.of(session, run, now)
    return ExplanationView(
        id=run.id, run=run.name, state=run.state, since=run.state_since, text=text, advice=advice,
        rounds_done=run.rounds_done, rounds_total=run.rounds_total, waits=waits,
        symptoms=[
            SymptomView(code=one.symptom.code, level=one.symptom.level, evidence=one.evidence, threshold=one.symptom.threshold,
                        advice=one.advice.replace("RUN", run.name))
            for one in found
        ],
    )  # fmt: skip


# ---- where it stands


def _stands(session: Session, run: Run, waits: Sequence[WaitView]) -> tuple[str, str | None]:
    """One sentence, and what a person must do where one must."""
    match run.state:
        case RunState.DRAFT if not run.prepared:
            return "it is being prepared: its blocks and its head are made", None
        case RunState.DRAFT:
            counts = readiness.counts(session, run, run.spec)
            there = ", ".join(f"{number} {standing.replace('_', ' ')}" for standing, number in sorted(counts.items())) or "nobody"
            return f"it is prepared and has not been started; agents it is open to: {there}", f"`fedcoord run start {run.name}`"
        case RunState.PAUSED:
            return run.reason or "nobody wrote down why", _mended(run, waits)
        case RunState.RUNNING if run.rounds_done == run.rounds_total:
            return f"all {run.rounds_total} rounds are done, and it ends once its model is made and scored{_waits_in_short(waits)}", None
        case RunState.RUNNING:
            done = f"{run.rounds_done} of {counted(run.rounds_total, 'round')} {'is' if run.rounds_done == 1 else 'are'} done"
            return f"{done}, and round {run.rounds_done} is under way{_waits_in_short(waits)}", None
    jobs = sum(wait.kind == "job" for wait in waits)
    left = f"; {counted(jobs, 'measurement')} {'is' if jobs == 1 else 'are'} still made" if jobs else ""
    ended = f"after {run.rounds_done} of {counted(run.rounds_total, 'round')}"
    if run.state == RunState.COMPLETED:
        how = run.conclusion.in_words() if run.conclusion is not None else "its last version is its model"
        return f"it ended {ended}{f' ({run.reason})' if run.reason else ''}: {how}{left}", f"`fedcoord run export {run.name} DIRECTORY`"
    text = f"it ended {ended}: {run.reason or 'nobody wrote down why'}{left}"
    can = (
        f"its model so far: `fedcoord run export {run.name} DIRECTORY`"
        if run.prepared
        else "mend the run file or the model, and create it anew"
    )
    return text, can


def _mended(run: Run, waits: Sequence[WaitView]) -> str | None:
    if any(wait.kind == "job" for wait in waits):
        return "wait until the job is done; then it says more"
    resume = f"`fedcoord run resume {run.name}`"
    if run.waits_for_agents:
        return f"it goes on by itself when somebody is there who can; {resume} asks everybody again"
    if is_wanted(run.reason):
        return resume
    return f"mend what the reason names, then {resume}"


def _waits_in_short(waits: Sequence[WaitView]) -> str:
    words = {"lease": "trained", "delta": "judged or applied", "agent": "waiting for an agent", "job": "in the engine"}
    counts = [f"{number} {word}" for kind, word in words.items() if (number := sum(wait.kind == kind for wait in waits))]
    return f": {', '.join(counts)}" if counts else ""


# ---- what it waits for


def _waits(session: Session, run: Run, claimants: Sequence[Claimant], now: datetime) -> Iterator[WaitView]:
    if not RUN.is_final(run.state) and (newest := queries.last_number(session, run.id)) is not None:
        yield from _in_round(session, run, newest, now)
    if run.state == RunState.RUNNING:
        yield from _pending(session, run, claimants, now)
    yield from _jobs(session, run, now)


def _in_round(session: Session, run: Run, number: int, now: datetime) -> Iterator[WaitView]:
    """Work that somebody has, and deltas that have come."""
    for row in session.execute(BUSY_ROWS, {"run": run.id, "round": number}):
        block = ", ".join(row.blocks)
        if row.state == AssignmentState.SUBMITTED:
            text = f"the delta of {row.name} for {block} is being judged, {_ago(row.submitted_at, now)}"
            yield WaitView(kind="delta", text=text, agent=row.name, block=block, round=number)
            continue
        attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
        text = f"{row.name} trains {block}{attempt}: {_far(row.progress)}, got on {_ago(row.progressed_at, now)}"
        trouble = row.progress.trouble if row.progress is not None else None
        yield WaitView(
            kind="lease", text=text + (f"; it is held up: {in_words(trouble)} [{trouble.code}]" if trouble is not None else ""),
            advice=f"look at the line between {row.name} and this coordinator (docs/running-an-agent.md, Networks)" if trouble else None,
            agent=row.name, block=block, round=number, until=row.lease_expires_at,
        )  # fmt: skip


def _far(progress: Progress | None) -> str:
    if progress is None:
        return "it has said nothing yet"
    if not progress.steps:
        return progress.phase
    loss = f", loss {progress.loss:.3f}" if progress.loss is not None else ""
    speed = f", {progress.tokens_per_s:,.0f} tokens/s" if progress.tokens_per_s is not None else ""
    return f"{progress.phase}, step {progress.step} of {progress.steps}{loss}{speed}"


def _ago(moment: datetime | None, now: datetime) -> str:
    return "at a time that is not known" if moment is None else f"{max(0.0, (now - moment).total_seconds()):.0f} s ago"


def _pending(session: Session, run: Run, claimants: Sequence[Claimant], now: datetime) -> Iterator[WaitView]:
    """Work that nobody has: whom it waits for and until when, else why those who wait for work do not take it."""
    opened = {opening.assignment_id: opening for opening in openings.waiting(session, now) if opening.run_id == run.id}
    patience = timedelta(seconds=run.spec.schedule.reassign_after_s)
    for number, (assignment, expected) in enumerate(outlook.of_run(session, run, now)):
        if number >= SHOWN:
            return
        block, until, own = ", ".join(assignment.blocks), assignment.waiting_since + patience, assignment.meant_for
        meant = queries.agent_name(session, own) if own is not None else None
        awaited = own is not None and until > now and own not in assignment.excluded and bool(readiness.there(session, run.id, [own]))
        text, advice = f"{block} {expected.text}", None
        if expected.kind == OutlookKind.OPEN:
            asked = [claimant for claimant in claimants if claimant.id == own] if awaited else claimants
            waited = f"{(now - assignment.waiting_since).total_seconds():.0f} s"
            late = f" ({meant}, whose it was, {'is not there' if until > now else 'has not come in time'})" if own is not None else ""
            text = f"{block} waits for {meant if awaited else f'anybody who may take it{late}'}, for {waited}"
            why = not_taken(opened[assignment.id], asked) if assignment.id in opened else None
            if why is not None:
                text, advice = f"{text}; {why[0]}", why[1]
            elif not asked:
                idle = (
                    f"{meant} does not ask this coordinator for work right now: it trains, or is outside its hours"
                    if awaited
                    else "no agent asks this coordinator for work right now: those who are there train, or are outside their hours"
                )
                text += f"; {idle}"
        if (unfit := _no_room(session, run, assignment)) is not None:
            text = f"{text}; {unfit}"
            advice = (
                advice or "raise limits.memory_gb there, lower train.batch_size, or choose another compression.policy (`fedcoord plan`)"
            )
        yield WaitView(
            kind="agent", text=text, advice=advice, agent=meant, block=block, round=assignment.round, until=until if awaited else None
        )  # fmt: skip


def not_taken(opening: Opening, claimants: Sequence[Claimant]) -> tuple[str, str] | None:
    """Why none of the agents that wait for work here may have it, and what helps; None where one of them may, or nobody waits."""
    if any(opening.is_for(claimant) for claimant in claimants):
        return None
    asked = [c for c in claimants if opening.open_to is None or c.name in opening.open_to]
    if not asked:
        return None
    if refusing := [c.name for c in asked if not consents(c.request, opening.run_id, opening.run_name)]:
        what = f"{_named(refusing)} waits for work, but not of this run: its owner has not consented, or it refused it after a failure"
        return what, f'runs = ["{opening.run_name}"] in its agent.toml, then `fedagent check` on its machine'
    if older := [f"{c.name} ({c.speaks})" for c in asked if c.speaks < opening.needs]:
        return (
            f"it needs version {opening.needs} of the protocol, which these do not speak: {_named(older)}",
            "update fedcybgd on their machines",
        )
    return None


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _no_room(session: Session, run: Run, assignment: Assignment) -> str | None:
    """What was said of agents for whom no emulator of it was small enough."""
    if not assignment.excluded:
        return None
    said = (Event.run_id == run.id) & (Event.code == DOES_NOT_FIT) & Event.agent_id.in_(assignment.excluded)
    return session.scalar(select(Event.message).where(said).order_by(Event.id.desc()).limit(1))


def _jobs(session: Session, run: Run, now: datetime) -> Iterator[WaitView]:
    """Its own jobs, and how many of others stand before those that are queued; of several of one kind the first, and how many there are."""
    rows = session.execute(JOB_ROWS, {"run": run.id}).all()
    queued, told = queries.job_counts(session, run.id)[JobState.QUEUED] if rows else Counter[str](), set[str]()
    for row in rows:
        if row.state == JobState.RUNNING:
            tries = f", begun {row.tries} times" if row.tries > 1 else ""
            yield WaitView(kind="job", text=f"the engine is at `{row.kind}`, begun {_ago(row.started_at, now)}{tries}")
            continue
        if row.kind in told:
            continue
        told.add(row.kind)
        before = (Job.state.in_((JobState.QUEUED, JobState.RUNNING))) & (Job.lane == row.lane) & (Job.created_at < row.created_at)
        ahead = session.scalar(select(func.count()).select_from(Job).where(before)) or 0
        what = f"`{row.kind}` is queued" if (number := queued[row.kind]) < 2 else f"{number} jobs `{row.kind}` are queued, the first"
        text = f"{what}, asked for {_ago(row.created_at, now)}; {'1 job of its lane is' if ahead == 1 else f'{ahead} jobs of its lane are'} before it"
        if row.lane not in replicas.lanes_done(session, now):
            text += f", and nobody is there that does them: start `fedcoord engine --lanes {row.lane}`"
        yield WaitView(kind="job", text=text)
