"""Which runs an agent may take part in, and what its data must look like for them."""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Block, Run
from fedcybgd.coordinator.domain.compression import LAYER
from fedcybgd.coordinator.domain.methods.registry import method_of
from fedcybgd.coordinator.domain.run import RunState
from fedcybgd.coordinator.errors import NotFound
from fedcybgd.shared.contract.agents import AgentSelf, RunOffer, VisitOffer
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.files.tables import FIELDS

BYTES_AT_LEAST: dict[str, tuple[float, float]] = {"none": (2, 2), "int8": (1, 1), "int4": (0.5, 1)}
"""In an agent's cache, of a parameter of a layer and of any other, where the policy gives every agent the same: a half-precision checkpoint, and codes
without their scales"""
OPEN_STATES = (RunState.DRAFT, RunState.RUNNING, RunState.PAUSED)


def self_of(session: Session, agent_id: str, now: datetime, holds: timedelta | None = None) -> AgentSelf:
    """`holds`: for how long a new key is good; None: for good."""
    agent = session.get_one(Agent, agent_id)
    ends_in_s = None if agent.key_expires_at is None else max(0.0, (agent.key_expires_at - now).total_seconds())
    # Half of the whole time, whenever it is asked: who is told anew each day would else put it off each day.
    half = None if ends_in_s is None else ends_in_s / 2 if holds is None else max(0.0, ends_in_s - holds.total_seconds() / 2)
    runs = session.scalars(select(Run).where(Run.state.in_(OPEN_STATES)).order_by(Run.created_at))
    offers = [_offer(session, run) for run in runs if is_open_to(run, agent)]
    return AgentSelf(
        agent_id=agent.id, name=agent.name, state=agent.state, enrolled_at=agent.enrolled_at,
        key_ends_in_s=ends_in_s, key_renews_in_s=half, runs=offers,
    )  # fmt: skip


def file_of(session: Session, agent_id: str, run_id: str, name: str) -> FileRef:
    """A configuration or tokenizer file of a run that is open to the agent; never weights."""
    run = queries.run_by_name(session, run_id)
    if is_open_to(run, session.get_one(Agent, agent_id)):
        for file in run.files:
            if file.name == name:
                return file
    raise NotFound(f"no run {run_id!r} with a file {name!r} is open to you")


def is_open_to(run: Run, agent: Agent) -> bool:
    """Whether the run file lets this agent take part, and the run has not ended."""
    if run.state not in OPEN_STATES or not run.prepared or agent.id in run.without:
        return False
    chosen = run.spec.agents
    return chosen == "all" or agent.name in chosen


def _least_disk_bytes(session: Session, run: Run) -> int | None:
    if (each := BYTES_AT_LEAST.get(run.spec.compression.policy)) is None:
        return None
    parameters = select(Block.kind, func.sum(Block.num_parameters)).where(Block.run_id == run.id).group_by(Block.kind)
    return int(sum(each[kind != LAYER] * count for kind, count in session.execute(parameters)))


def _offer(session: Session, run: Run) -> RunOffer:
    task, train = run.spec.task, run.spec.train
    fields, method = FIELDS[task.kind], method_of(run.spec)
    lengths = [run.spec.in_cycle(cycle).train.steps for cycle in (0, 1)]
    steps = None if None in lengths else max(n for n in lengths if n is not None)
    visits = VisitOffer(
        blocks=list(dict.fromkeys([*run.trained_blocks, *run.spec.schedule.always])), steps=steps, batch_size=train.batch_size,
        delta_patches=run.spec.compression.delta_patches, all_at_once=method.trains_all(run.spec), weighed_by_rows=method.weighs_rows(run.spec),
        corrects=run.spec.corrections.layers if run.spec.corrections is not None else None,
        least_disk_bytes=_least_disk_bytes(session, run),
    )  # fmt: skip
    return RunOffer(
        run_id=run.id, name=run.name, state=run.state,
        fields=[" and ".join(a) for a in fields.alternatives], optional_fields=list(fields.optional),
        **dict(task.spec), files=run.files, visits=visits,
    )  # fmt: skip
