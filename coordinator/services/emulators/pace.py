"""How long the attempt of an agent may stand still and take: by what the visit asks for, and by what the agent did lately in the run."""

import math
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Agent, Assignment, Block, Model, Readiness, Run
from fedcybgd.coordinator.planning import duration
from fedcybgd.coordinator.planning.duration import Pace, Work
from fedcybgd.coordinator.planning.shapes import ModelShape
from fedcybgd.coordinator.services.emulators import costing
from fedcybgd.shared.contract.manifests import Manifest

LATELY = 64
"""Rounds in which earlier visits are looked for"""
MOST_ROWS = 100_000
"""That an agent is taken to have, where it does not say"""


class AttemptLimits(NamedTuple):
    """How long an attempt may show no progress, and how long it may take."""

    patience: timedelta
    life: timedelta


def limits(session: Session, run: Run, assignment: Assignment, agent: Agent, manifest: Manifest, delta_bytes: int) -> AttemptLimits:
    """`delta_bytes` is how large its delta may be."""
    work, pace = _work(session, run, assignment, agent, manifest, delta_bytes), _pace(session, assignment, agent.id)
    facts = costing.facts_of_agent(agent)
    return AttemptLimits(
        timedelta(seconds=round(duration.patience_s(work, facts.device, pace), 3)),
        timedelta(seconds=round(duration.life_s(work, facts.device, facts.bytes_per_s, pace), 3)),
    )


def _work(session: Session, run: Run, assignment: Assignment, agent: Agent, manifest: Manifest, delta_bytes: int) -> Work:
    held = (Block.run_id == run.id) & Block.name.not_in(manifest.dropped)
    # PostgreSQL sums whole numbers to a decimal.
    parameters = int(session.scalar(select(func.sum(Block.num_parameters)).where(held)) or 0)
    train, bytes = assignment.train, sum(ref.size for ref in manifest.blocks) + delta_bytes
    if train.steps is not None:
        steps = train.steps
    else:
        said = session.get(Readiness, (agent.id, run.id))
        known = said.rows if said is not None else None
        # Roughly said is a power of ten, or more.
        rows = MOST_ROWS if known is None else known * (1 if said is not None and said.exact else 10)
        steps = math.ceil((train.epochs or 1.0) * rows / train.batch_size)
    return Work(parameters, train.batch_size * row_tokens(session, run), steps, bytes)


def row_tokens(session: Session, run: Run) -> int:
    """Tokens of a row of this run, as long as rows may be."""
    if run.spec.task.kind != "image-classification":
        return run.spec.task.max_length
    return ModelShape.of(session.scalars(select(Model.config).where(Model.id == run.model_id)).one()).row_tokens(run.spec)


def _pace(session: Session, assignment: Assignment, agent_id: str) -> Pace | None:
    """None: it has done nothing of this run lately. What it says of its steps counts up to the time that it took by this clock."""
    mine = (Assignment.run_id == assignment.run_id) & (Assignment.agent_id == agent_id)
    lately = Assignment.round.between(assignment.round - LATELY, assignment.round - 1) & Assignment.submitted_at.is_not(None)
    columns = select(Assignment.metrics, Assignment.leased_at, Assignment.submitted_at)
    took, steps = [], []
    for metrics, leased_at, submitted_at in session.execute(columns.where(mine, lately).order_by(Assignment.round.desc()).limit(5)):
        if metrics is not None and leased_at is not None and submitted_at is not None:
            took.append(max(0.0, (submitted_at - leased_at).total_seconds()))
            steps.append(min(metrics.seconds, took[-1]) / max(1, metrics.steps))
    return Pace(max(steps), max(took)) if took else None
