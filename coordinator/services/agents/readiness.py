"""What agents said of a run, whether its data fit, and who is there for it."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, Text, bindparam, cast, func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Readiness, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.standing import TAKES_PART, Standing, standing_of
from fedcybgd.shared.contract.agents import UnfitReason
from fedcybgd.shared.contract.words import FINAL

NOT_CONSENTED: UnfitReason = "not_consented"
ROWS_HIDDEN: UnfitReason = "rows_hidden"
"""Of an agent that does not say how many rows it has, where deltas are weighed by them."""
MADE = 256
"""Statements about the members of so many runs are kept: to make one costs more than asking."""
Members = Select[*tuple[Any, ...]]


@dataclass(frozen=True)
class Member:
    """An agent that a run is open to."""

    id: str
    name: str
    standing: Standing
    reason: str | None
    rows: int | None
    exact: bool
    last_seen_at: datetime | None
    quarantined_until: datetime | None

    @property
    def takes_part(self) -> bool:
        return self.standing in TAKES_PART


def members(session: Session, run: Run, spec: RunFile) -> list[Member]:
    """The agents that a run is open to and that are not revoked: in the order of the run file, else by name."""
    found = [member(row) for row in session.execute(open_to(run, spec).order_by(Agent.name))]
    if spec.agents == "all":
        return found
    place = {name: number for number, name in enumerate(spec.agents)}
    return sorted(found, key=lambda member: place[member.name])


def member(row: Any) -> Member:
    """From a row of `open_to`."""
    return Member(
        id=row.id, name=row.name, standing=standing_of(row.state, row.fits, row.quarantined_until is not None), reason=row.reason if row.fits is False else None,
        rows=row.rows if row.fits else None, exact=bool(row.exact), last_seen_at=row.last_seen_at,
        quarantined_until=row.quarantined_until,
    )  # fmt: skip


def counts(session: Session, run: Run, spec: RunFile) -> dict[str, int]:
    """How many members there are of each standing; counted by the database, however many they are."""
    open_now = open_to(run, spec).subquery()
    kinds = open_now.c.state, open_now.c.fits, open_now.c.quarantined_until.is_not(None)
    found = Counter[str]()
    for state, fits, quarantined, number in session.execute(select(*kinds, func.count()).group_by(*kinds)):
        found[str(standing_of(state, fits, bool(quarantined)))] += number
    return found


def newcomers(session: Session, run: Run, spec: RunFile) -> list[str]:
    """Ids of those who are there by now and take no part yet.

    Under an exposure budget there are none: who sees which blocks was planned for the agents of the start. Others may stand in.
    """
    if spec.exposure.max_exact_blocks is not None:
        return []
    already = set(run.participants)
    there = session.execute(open_to(run, spec).with_only_columns(Agent.id, Agent.name).where(_takes_part()).order_by(Agent.name)).all()
    if spec.agents != "all":
        place = {name: number for number, name in enumerate(spec.agents)}
        there = sorted(there, key=lambda row: place[row.name])
    return [row.id for row in there if row.id not in already]


def somebody_able(session: Session, run: Run, spec: RunFile, excluded: Collection[str]) -> bool:
    """Whether anybody else could take work of a run, now or when it is back."""
    return _anybody(session, _one_able(open_to(run, spec)), excluded)


def somebody_there(session: Session, run: Run, spec: RunFile, excluded: Collection[str]) -> bool:
    """Whether anybody else is there who takes part."""
    return _anybody(session, _one_there(open_to(run, spec)), excluded)


def somebody_present(session: Session, run: Run, spec: RunFile, excluded: Collection[str]) -> bool:
    """Whether anybody else is there whose data may fit, be it in quarantine, which ends by itself."""
    return _anybody(session, _one_present(open_to(run, spec)), excluded)


def there(session: Session, run_id: str, agents: Collection[str]) -> set[str]:
    """Those of them with whom it makes sense to plan."""
    return set(session.scalars(THERE, {"run": run_id, "agents": list(set(agents))}))


def refused(session: Session, run_id: str, agent_id: str, assignment_id: str, reason: str | None, now: datetime) -> None:
    """Note that an agent is not asked for an assignment until something is mended; `reason`: nor for any other of the run."""
    row = row_of(session, run_id, agent_id, now)
    row.refused = [*row.refused, assignment_id]
    if reason is not None:
        row.fits, row.reason, row.at = False, reason, now


def forget_refusals(session: Session, run_id: str) -> None:
    """Ask everybody again. Rows are read of those alone who are not asked for something: in a large run, hardly any."""
    refusing = cast(Readiness.refused, Text) != "[]"
    for row in session.scalars(select(Readiness).where(Readiness.run_id == run_id, refusing)):
        row.refused, row.fits, row.reason = [], None, None


def unfit(session: Session, run: Run, most: int) -> dict[str, str]:
    """Name and reason of agents that have no part in a run though their owners have consented to it: something is to be mended there."""
    return {row.name: row.reason for row in session.execute(_unfit(open_to(run, run.spec)), {"most": most})}


def said_by(session: Session, agent_id: str, most: int) -> Sequence[Any]:
    """What an agent has said of runs that have not ended: `run_id`, `run`, `fits`, `reason`, `rows`, `exact`."""
    said = (Readiness.agent_id == agent_id) & Readiness.fits.is_not(None) & Run.state.not_in(FINAL)
    columns = (Readiness.fits, Readiness.reason, Readiness.rows, Readiness.exact)
    found = select(Run.id.label("run_id"), Run.name.label("run"), *columns).join(Readiness, Readiness.run_id == Run.id)
    return session.execute(found.where(said).order_by(Run.name).limit(most)).all()


def row_of(session: Session, run_id: str, agent_id: str, now: datetime) -> Readiness:
    row = session.get(Readiness, (agent_id, run_id))
    if row is None:
        row = Readiness(agent_id=agent_id, run_id=run_id, fits=None, reason=None, rows=None, exact=False, refused=[], at=now)
        session.add(row)
    return row


def said_in_words(member: Member) -> str:
    """For people: why an agent does not come."""
    match member.standing:
        case Standing.UNFIT:
            return f"{member.name} has no data that fit ({member.reason})"
        case Standing.SILENT:
            return f"{member.name} is silent"
        case Standing.NEVER_SEEN:
            return f"{member.name} was never seen"
        case Standing.QUARANTINED:
            return f"{member.name} is in quarantine"
        case _:
            return f"{member.name} is there"


def listed(members: Sequence[Member], most: int = 8) -> str:
    more = f" and {len(members) - most} more" if len(members) > most else ""
    return ", ".join(said_in_words(m) for m in members[:most]) + more


def open_to(run: Run, spec: RunFile) -> Members:
    """What there is to know of the members of a run, in no order."""
    return _open_to(run.id, None if spec.agents == "all" else tuple(spec.agents), tuple(run.without))


@lru_cache(MADE)
def _open_to(run_id: str, named: tuple[str, ...] | None, without: tuple[str, ...]) -> Members:
    of_agent = (Agent.id, Agent.name, Agent.state, Agent.last_seen_at, Agent.quarantined_until)
    columns = (*of_agent, Readiness.fits, Readiness.reason, Readiness.rows, Readiness.exact)
    said = (Readiness.agent_id == Agent.id) & (Readiness.run_id == run_id)
    return select(*columns).select_from(Agent).join(Readiness, said, isouter=True).where(queries.is_open(named, without))


def _fits() -> Any:
    """What `standing_of` calls any but unfit."""
    return Readiness.fits.is_not(False)


def _takes_part() -> Any:
    """What `TAKES_PART` says, for the database."""
    return (Agent.state == AgentState.ACTIVE) & Agent.quarantined_until.is_(None) & _fits()


THERE = (
    select(Agent.id)
    .join(Readiness, (Readiness.agent_id == Agent.id) & (Readiness.run_id == bindparam("run")), isouter=True)
    .where(Agent.id.in_(bindparam("agents", expanding=True)), _takes_part())
)


@lru_cache(MADE)
def _one_able(members: Members) -> Members:
    return _one(members, _fits())


@lru_cache(MADE)
def _one_there(members: Members) -> Members:
    return _one(members, _takes_part())


@lru_cache(MADE)
def _one_present(members: Members) -> Members:
    return _one(members, (Agent.state == AgentState.ACTIVE) & _fits())


def _one(members: Members, which: Any) -> Members:
    return members.with_only_columns(Agent.id).where(which, Agent.id.not_in(bindparam("excluded", expanding=True))).limit(1)


@lru_cache(MADE)
def _unfit(members: Members) -> Members:
    wrong = (Readiness.fits.is_(False)) & (Readiness.reason != NOT_CONSENTED)
    return members.where(wrong).order_by(Agent.name).limit(bindparam("most"))


def _anybody(session: Session, one: Members, excluded: Collection[str]) -> bool:
    return session.scalar(one, {"excluded": list(excluded)}) is not None
