"""Plans a run before it begins: what it will ask of every enrolled agent, from the added model or from the prepared run."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Model, Run
from fedcybgd.coordinator.domain.model import ModelState
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.planning import forecast
from fedcybgd.coordinator.planning.forecast import AgentForecast, Moved, VisitForecast
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, blocks_of_run
from fedcybgd.coordinator.services.emulators import costing
from fedcybgd.coordinator.services.operate import models
from fedcybgd.shared.contract.plans import AgentPlan, BytesMoved, PlanView, VisitPlan


def plan_run(session: Session, spec: RunFile, tokens_per_s: float | None = None, rows: int | None = None) -> PlanView:
    """What the run of this run file will ask of the agents that are enrolled now. Nothing is changed.

    Raises `NotFound` or `ModelNotReady` for its model, `PlanRefused` and `PartitionError` for blocks that the model does not have.
    """
    model = models.by_name(session, spec.model)
    if model.state != ModelState.READY:
        raise models.ModelNotReady(f"model {spec.model!r} is not ready: {model.reason or 'it is still being added'}")
    run = _prepared_run(session, spec, model)
    if run is not None:
        rows_of_blocks = queries.blocks_of(session, run.id, tensors=True)
        blocks, visited = (
            costing.shapes(rows_of_blocks, costing.known_sizes(session, [b.digest for b in rows_of_blocks])),
            list(run.trained_blocks),
        )
    else:
        blocks, visited = blocks_of_run(spec, model.config, _of_model(session, model))
    files = sum(file.size for file in (run.files if run is not None else model.files))
    agents = [costing.facts_of_agent(agent) for agent in queries.agents(session)]
    found = forecast.forecast(spec, ModelShape.of(model.config), blocks, visited, agents, files, tokens_per_s, rows)
    return PlanView(
        run=spec.name, model=model.name, prepared=run is not None, rounds=found.rounds, visited=found.visited, problems=found.problems,
        hours=found.hours, at_once=found.at_once, first_cycle_down=found.first_cycle[0], first_cycle_down_once=found.first_cycle[1],
        agents=[_agent(spec, a) for a in found.agents],
    )  # fmt: skip


def _prepared_run(session: Session, spec: RunFile, model: Model) -> Run | None:
    """The newest run of this name, if it is prepared and has the same blocks and head."""
    run = session.scalar(select(Run).where(Run.name == spec.name, Run.model_id == model.id).order_by(Run.created_at.desc()).limit(1))
    if run is None or not run.prepared:
        return None
    other = run.spec
    same = (other.task.kind, other.task.num_labels, other.schedule.layers_per_block, other.schedule.blocks, other.schedule.always) == (
        spec.task.kind, spec.task.num_labels, spec.schedule.layers_per_block, spec.schedule.blocks, spec.schedule.always,
    )  # fmt: skip
    return run if same and _beside(other) == _beside(spec) else None


def _beside(spec: RunFile) -> tuple[list[str], int] | None:
    return (spec.adapters.matrices, spec.adapters.rank) if spec.adapters is not None else None


def _of_model(session: Session, model: Model) -> list[BlockShape]:
    known = costing.known_sizes(session, [b.digest for b in model.blocks])
    return [
        BlockShape(
            b.name, b.kind, {t.name: tuple(t.shape) for t in b.tensors}, costing.itemsize(b.size, b.num_parameters),
            known.get(b.digest, {}),
        )
        for b in model.blocks
    ]  # fmt: skip


def _agent(spec: RunFile, found: AgentForecast) -> AgentPlan:
    peaks = [visit.memory.peak for visit in found.visits if visit.memory is not None]
    return AgentPlan(
        name=found.agent.name, able=found.why_not is None, reason=found.why_not[0] if found.why_not else None,
        message=found.why_not[1] if found.why_not else None, visits=[_visit(v) for v in found.visits],
        visits_per_cycle=found.visits_per_cycle, memory_largest=max(peaks, default=None),
        memory_mean=sum(peaks) // len(peaks) if peaks else None, memory_needed=found.memory_needed,
        memory_allowed=forecast.limits_of(spec, found.agent).memory_bytes, disk_needed=found.disk,
        disk_allowed=found.agent.disk_bytes or None, first_cycle=_moved(found.first_cycle),
        later_cycle=_moved(found.later_cycle) if found.later_cycle else None, whole_run=_moved(found.whole_run),
        training_hours=found.training_hours, transfer_hours=found.transfer_hours,
    )  # fmt: skip


def _visit(found: VisitForecast) -> VisitPlan:
    return VisitPlan(
        block=found.blocks[0], blocks=list(found.blocks), memory_bytes=found.memory.peak if found.memory else None,
        memory_parts={name: size for name, size in found.memory.parts.items() if size} if found.memory else {},
        codecs={codec: list(names) for codec, names in found.codecs.items()}, down=found.down, up=found.up, why_not=found.why_not,
    )  # fmt: skip


def _moved(moved: Moved) -> BytesMoved:
    return BytesMoved(down=moved.down, up=moved.up)
