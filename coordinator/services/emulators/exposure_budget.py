"""The exposure budget of a run, held against the ledger: what each agent has got exact, and who may still get what."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Text, cast, select, text
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Block, Exposure, Run
from fedcybgd.coordinator.domain.agent import AgentState
from fedcybgd.coordinator.domain.compression import DoesNotFit, FidelityTooLow, Plan
from fedcybgd.coordinator.domain.exposure import common_blocks, may_see
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.emulators import choose
from fedcybgd.shared.contract.codec import EXACT


def serialize(session: Session, agent_id: str) -> None:
    """Let two claims of one agent go one after the other: each alone may be within the budget, and both together beyond it."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:agent))"), {"agent": agent_id})


def exact_blocks_seen(session: Session, run: Run, spec: RunFile, agent_id: str | None = None) -> dict[str, set[str]]:
    """Blocks of a run that agents have got exact: by the ledger, and with the assignments that they hold or held to the end."""
    result: dict[str, set[str]] = defaultdict(set)
    sent = select(Exposure.agent_id, Exposure.block).where(Exposure.run_id == run.id, Exposure.codec == EXACT).distinct()
    # By the text of the list: JSON itself cannot be compared everywhere.
    blocks = cast(Assignment.blocks, Text)
    held = select(Assignment.agent_id, blocks).where(Assignment.run_id == run.id, Assignment.agent_id.is_not(None)).distinct()
    if agent_id is not None:
        sent, held = sent.where(Exposure.agent_id == agent_id), held.where(Assignment.agent_id == agent_id)
    for agent, block in session.execute(sent):
        result[agent].add(block)
    for holder, names in session.execute(held):
        result[str(holder)] |= {*json.loads(names), *spec.schedule.always}
    return result


def coming(session: Session, run: Run, assignment: Assignment, agent: Agent) -> set[str]:
    """Blocks that an assignment would bring this agent exact: those that it trains, and those that the policy leaves exact."""
    try:
        return choose.trained_in(assignment) | _exact(choose.plan_of(session, run, assignment, agent))
    except FidelityTooLow:
        return choose.trained_in(assignment)  # no emulator is faithful enough, so nothing is sent: the lease says so


def may_take(session: Session, run: Run, assignment: Assignment, agent: Agent) -> bool:
    """Whether the budget lets this agent have an assignment."""
    return run.spec.exposure.max_exact_blocks is None or _is_within(session, run, agent, coming(session, run, assignment, agent))


def lets(session: Session, run: Run, assignment: Assignment, agent: Agent, plan: Plan | DoesNotFit | None) -> bool:
    """The same for a plan that was made already; None: there is none that is faithful enough."""
    if run.spec.exposure.max_exact_blocks is None:
        return True
    return _is_within(session, run, agent, choose.trained_in(assignment) | (_exact(plan) if plan is not None else set()))


def _is_within(session: Session, run: Run, agent: Agent, new: set[str]) -> bool:
    return may_see(exact_blocks_seen(session, run, run.spec, agent.id)[agent.id], new, run.spec.exposure.max_exact_blocks)


def somebody_may(session: Session, run: Run, spec: RunFile, assignment: Assignment, there: bool = False) -> bool:
    """Whether the budget lets anybody have it who takes part, or may stand in, and was not excluded. `there`: and is there now."""
    return spec.exposure.max_exact_blocks is None or any(True for _ in who_may(session, run, spec, assignment, there))


def who_may(session: Session, run: Run, spec: RunFile, assignment: Assignment, there: bool = False) -> Iterator[str]:
    """Ids of those whom the budget lets have it, of all who take part, or may stand in, and were not excluded."""
    limit, got = spec.exposure.max_exact_blocks, exact_blocks_seen(session, run, spec)
    for agent in _candidates(session, run, spec, assignment):
        is_there = agent.state == AgentState.ACTIVE and agent.quarantined_until is None
        if (is_there or not there) and may_see(got[agent.id], coming(session, run, assignment, agent), limit):
            yield agent.id


def common(spec: RunFile, blocks: Sequence[Block]) -> set[str]:
    """The blocks of a run that every agent gets exact."""
    return common_blocks(spec, [b.name for b in blocks], _exact(choose.plan_for(spec, blocks, set(), None)))


def _candidates(session: Session, run: Run, spec: RunFile, assignment: Assignment) -> Iterable[Agent]:
    return session.scalars(select(Agent).where(queries.is_open_to(run, spec), Agent.id.not_in(assignment.excluded)))


def _exact(plan: dict[str, str] | DoesNotFit) -> set[str]:
    chosen = plan.plan if isinstance(plan, DoesNotFit) else plan
    return {name for name, codec in chosen.items() if codec == EXACT}
