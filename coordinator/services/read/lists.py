"""What operators look through, in pages: each list has an order of its own, and a page costs the same wherever it is."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session, aliased

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.base import Base
from fedcybgd.coordinator.db.models import (
    Agent,
    Assignment,
    Audit,
    EnrolmentToken,
    Evaluation,
    Exposure,
    Model,
    Operator,
    Round,
    Run,
    Traffic,
)
from fedcybgd.coordinator.db.paging import Listed, Order, Page
from fedcybgd.coordinator.domain.run import RUN, RunState
from fedcybgd.coordinator.services.agents import readiness
from fedcybgd.shared.contract.operators import AuditEntry, OperatorView, TokenView
from fedcybgd.shared.contract.views import (
    AgentView,
    AssignmentView,
    EvaluationView,
    ExposureView,
    FidelityView,
    MemberView,
    ModelView,
    RoundView,
    RunSummary,
    TrafficView,
)

AGENTS, MODELS, OPERATORS = Order(Agent.name), Order(Model.name), Order(Operator.name)
ACTS, NEWEST_ACTS = Order(Audit.seq), Order(Audit.seq, newest_first=True)
TOKENS = Order(EnrolmentToken.created_at, EnrolmentToken.id, newest_first=True)
RUNS = Order(Run.created_at, Run.id, newest_first=True)
ROUNDS = Order(Round.number, newest_first=True)
ASSIGNMENTS = Order(Assignment.round, Assignment.waiting_since, Assignment.id)
EVALUATIONS = Order(Evaluation.after_rounds)
TRAFFIC = Order(Traffic.round, Traffic.agent_id, Traffic.kind)
EXPOSURE = Order(Exposure.first_at, Exposure.agent_id, Exposure.run_id, Exposure.block, Exposure.version, Exposure.codec, newest_first=True)

QUARANTINED = "quarantined"
"""No state of its own, but to be looked for"""
FINAL = tuple(state for state in RunState if RUN.is_final(state))

HOLDER, MEANT = aliased(Agent), aliased(Agent)


def _columns(table: type[Base], view: type[BaseModel], *others: str) -> list[Any]:
    return [getattr(table, name) for name in view.model_fields if name not in others]


# Made once: to make a statement costs more than to ask it.
AGENT_ROWS = select(*_columns(Agent, AgentView))
ACT_ROWS = select(*_columns(Audit, AuditEntry))
TOKEN_ROWS = select(*_columns(EnrolmentToken, TokenView, "agent"), Agent.name.label("agent")).join(
    Agent, Agent.id == EnrolmentToken.agent_id, isouter=True
)
OPERATOR_ROWS = select(*_columns(Operator, OperatorView))
MODEL_ROWS = select(*_columns(Model, ModelView))
RUN_ROWS = select(*_columns(Run, RunSummary, "model"), Model.name.label("model")).join(Model, Model.id == Run.model_id)
ROUND_ROWS = select(*_columns(Round, RoundView, "applied", "fidelity"))
ROUNDS_OF_RUN = ROUND_ROWS.where(Round.run_id == bindparam("run"))
ASSIGNMENT_ROWS = (
    select(*_columns(Assignment, AssignmentView, "block", "agent", "meant_for"), HOLDER.name.label("agent"), MEANT.name.label("meant_for"))
    .join(HOLDER, HOLDER.id == Assignment.agent_id, isouter=True)
    .join(MEANT, MEANT.id == Assignment.meant_for, isouter=True)
)
EVALUATION_ROWS = select(Evaluation.after_rounds, Evaluation.created_at, Evaluation.metrics)
TRAFFIC_ROWS = select(*_columns(Traffic, TrafficView, "agent"), Agent.name.label("agent")).join(Agent, Agent.id == Traffic.agent_id)
EXPOSURE_ROWS = select(*_columns(Exposure, ExposureView, "agent"), Agent.name.label("agent")).join(Agent, Agent.id == Exposure.agent_id)


def agents(session: Session, page: Page, state: str | None = None) -> Listed[AgentView]:
    """By name; all, those in a state, or those in quarantine."""
    query = AGENT_ROWS
    if state is not None:
        query = query.where(Agent.quarantined_until.is_not(None) if state == QUARANTINED else Agent.state == state)
    return AGENTS.page(session, query, page).map(lambda row: AgentView.model_validate(row, from_attributes=True))


def agent(session: Session, name_or_id: str) -> AgentView:
    """Raises `NotFound`."""
    return AgentView.model_validate(queries.agent_by_name(session, name_or_id), from_attributes=True)


def acts(session: Session, page: Page, newest_first: bool = False, name: str | None = None) -> Listed[AuditEntry]:
    """The oldest first, unless told; of everybody, or of one name."""
    query = ACT_ROWS if name is None else ACT_ROWS.where(Audit.name == name)
    order = NEWEST_ACTS if newest_first else ACTS
    return order.page(session, query, page).map(lambda row: AuditEntry.model_validate(row, from_attributes=True))


def tokens(session: Session, page: Page) -> Listed[TokenView]:
    """The newest first."""
    return TOKENS.page(session, TOKEN_ROWS, page).map(lambda row: TokenView.model_validate(row, from_attributes=True))


def operators(session: Session, page: Page) -> Listed[OperatorView]:
    """By name."""
    return OPERATORS.page(session, OPERATOR_ROWS, page).map(lambda row: OperatorView.model_validate(row, from_attributes=True))


def models(session: Session, page: Page) -> Listed[ModelView]:
    """By name."""
    return MODELS.page(session, MODEL_ROWS, page).map(lambda row: ModelView.model_validate(row, from_attributes=True))


def runs(session: Session, page: Page, ended: bool | None = None) -> Listed[RunSummary]:
    """The newest first; all, or only those that have ended, or have not."""
    query = RUN_ROWS
    if ended is not None:
        query = query.where(Run.state.in_(FINAL) if ended else Run.state.not_in(FINAL))
    return RUNS.page(session, query, page).map(lambda row: RunSummary.model_validate(row, from_attributes=True))


def run_name(session: Session, run_id: str | None) -> str | None:
    return session.scalar(select(Run.name).where(Run.id == run_id)) if run_id is not None else None


def rounds(session: Session, name: str, page: Page) -> Listed[RoundView]:
    """The newest first."""
    return rounds_of(session, queries.run_id(session, name), page)


def rounds_of(session: Session, run_id: str, page: Page) -> Listed[RoundView]:
    found = ROUNDS.page(session, ROUNDS_OF_RUN, page, run=run_id)
    if not found.items:
        return Listed([], None)
    numbers = found.items[-1].number, found.items[0].number
    applied = queries.applied_in(session, run_id, *numbers)
    fidelity = defaultdict(list)
    for measured in queries.fidelity_in(session, run_id, *numbers):
        fidelity[measured.round].append(FidelityView(block=measured.block, **dict(measured.metrics)))
    return found.map(lambda row: RoundView(**row._mapping, applied=applied.get(row.number, 0), fidelity=fidelity[row.number]))


def assignments(session: Session, name: str, page: Page) -> Listed[AssignmentView]:
    """The oldest first."""
    query = ASSIGNMENT_ROWS.where(Assignment.run_id == queries.run_id(session, name))
    return ASSIGNMENTS.page(session, query, page).map(_assignment)


def assignments_in(session: Session, run_id: str, round: int) -> list[AssignmentView]:
    """Those of one round, by seat."""
    rows = session.execute(
        ASSIGNMENT_ROWS.where(Assignment.run_id == run_id, Assignment.round == round).order_by(Assignment.seat, Assignment.id)
    )
    return [_assignment(row) for row in rows]


def _assignment(row: Any) -> AssignmentView:
    view = AssignmentView(**row._mapping, block=row.blocks[0])
    if view.metrics is None or view.metrics.label_counts is None:
        return view
    # Told for the head to be put together by, and nobody else's to read.
    return view.model_copy(update={"metrics": view.metrics.model_copy(update={"label_counts": None})})


def evaluations(session: Session, name: str, page: Page) -> Listed[EvaluationView]:
    """The oldest first."""
    query = EVALUATION_ROWS.where(Evaluation.run_id == queries.run_id(session, name))
    return EVALUATIONS.page(session, query, page).map(evaluation)


def evaluation(row: Any) -> EvaluationView:
    return EvaluationView(after_rounds=row.after_rounds, created_at=row.created_at, **dict(row.metrics))


def traffic(session: Session, name: str, page: Page) -> Listed[TrafficView]:
    """By round, agent and kind."""
    query = TRAFFIC_ROWS.where(Traffic.run_id == queries.run_id(session, name))
    return TRAFFIC.page(session, query, page).map(lambda row: TrafficView.model_validate(row, from_attributes=True))


def exposure(session: Session, agent: str | None, page: Page) -> Listed[ExposureView]:
    """What was received last, first; of one agent, if it is named."""
    query = EXPOSURE_ROWS
    if agent is not None:
        query = query.where(Exposure.agent_id == queries.agent_by_name(session, agent).id)
    return EXPOSURE.page(session, query, page).map(lambda row: ExposureView.model_validate(row, from_attributes=True))


def run_names(session: Session, ids: Collection[str]) -> dict[str, str]:
    return {row.id: row.name for row in session.execute(select(Run.id, Run.name).where(Run.id.in_(ids)))}


def members(session: Session, name: str, page: Page) -> Listed[MemberView]:
    """The agents that a run is open to, by name: who is there, and whose data fit."""
    run = queries.run_by_name(session, name)
    participants = set(run.participants)
    found = AGENTS.page(session, readiness.open_to(run, run.spec), page).map(readiness.member)
    return found.map(
        lambda m: MemberView(
            agent=m.name, standing=m.standing, takes_part=m.takes_part, participant=m.id in participants, reason=m.reason, rows=m.rows,
            exact=m.exact, last_seen_at=m.last_seen_at,
        )
    )  # fmt: skip
