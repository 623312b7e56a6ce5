"""Decides the emulator that an agent gets for an assignment: a codec for every block, and the shards of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Agent, Assignment, Block, Model, Run
from fedcybgd.coordinator.domain import compression
from fedcybgd.coordinator.domain.compression import BlockFacts, DoesNotFit, Plan
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.emulators import costing, fidelity, shards
from fedcybgd.shared.contract.codec import DROPPED
from fedcybgd.shared.contract.manifests import Manifest


def plan_of(session: Session, run: Run, assignment: Assignment, agent: Agent) -> Plan | DoesNotFit:
    """The codecs in which this agent would get the present blocks for an assignment.

    Raises `FidelityTooLow` when every plan that the run file allows is under the floor.
    """
    blocks, config = for_plan(session, run, run.spec)
    known = None if run.spec.compression.floor is None else fidelity.known_fidelity(session, run, assignment.block)
    return plan_for(run.spec, blocks, trained_in(assignment), agent, known, config)


def manifest_of(session: Session, run: Run, assignment: Assignment, plan: Plan, agent_id: str, now: datetime) -> Manifest | None:
    """The emulator of a plan for an agent, from the present versions; None while shards of it are made, or its fidelity is measured. Both are requested."""
    blocks, _ = for_plan(session, run, run.spec)
    manifest = shards.manifest(session, run, blocks, plan, agent_id, now)
    if manifest is not None and not fidelity.is_measured(session, run, assignment, plan, manifest, now):
        return None
    return manifest


def plan_for(
    spec: RunFile,
    blocks: Sequence[Block],
    trained: Collection[str],
    agent: Agent | None,
    fidelity: Mapping[str, float] | None = None,
    config: Mapping[str, JsonValue] | None = None,
) -> Plan | DoesNotFit:
    """The codec of every block for this agent, by the policy of the run file; `config` is the model's, by which `auto` reckons costs."""
    if spec.compression.policy != "auto" or agent is None or config is None:
        return compression.plan(spec.compression, [facts_of_block(b) for b in blocks], trained, fidelity=fidelity)
    limits, costs = costing.costs_for(spec, config, blocks, trained, agent)
    return compression.plan(spec.compression, [facts_of_block(b) for b in blocks], trained, limits, costs, fidelity)


def for_plan(session: Session, run: Run, spec: RunFile) -> tuple[Sequence[Block], Mapping[str, JsonValue] | None]:
    """The blocks of a run, and the configuration of its model where the policy reckons costs by it: then with their tensors."""
    if spec.compression.policy != "auto":
        return queries.blocks_of(session, run.id), None
    config = session.scalars(select(Model.config).where(Model.id == run.model_id)).one()
    return queries.blocks_of(session, run.id, tensors=True), config


def facts_of_block(block: Block) -> BlockFacts:
    return BlockFacts(block.name, block.kind, block.num_parameters, version=block.changes, influence=block.influence)


def trained_in(assignment: Assignment) -> set[str]:
    return set(assignment.train.trained)


def request_ahead(session: Session, run: Run, trained: Collection[str], now: datetime) -> None:
    """Have made what the first visits will ask for, as soon as the run's blocks are there: each block as policy has it frozen, and these to train."""
    plan = frozen_plan(run.spec, [facts_of_block(b) for b in queries.blocks_of(session, run.id)])
    shards.request_ahead(session, run, {name: {codec, *_to_train(run.spec, name, trained)} for name, codec in plan.items()}, now)


def frozen_plan(spec: RunFile, blocks: Sequence[BlockFacts]) -> Plan:
    """The codec of every block for whoever trains none of them and has declared no limits."""
    frozen = compression.plan(spec.compression, blocks, set())
    return frozen.plan if isinstance(frozen, DoesNotFit) else frozen


def codecs_after(spec: RunFile, blocks: Sequence[Block], changed: Collection[str], trained: Collection[str]) -> dict[str, list[str]]:
    """The codecs in which the next versions of `changed` will be wanted: hybrid prunes what was updated; some are `trained` next."""
    after = [replace(facts_of_block(b), version=b.changes + 1) if b.name in changed else facts_of_block(b) for b in blocks]
    plan = frozen_plan(spec, after)
    return {name: sorted({plan[name], *_to_train(spec, name, trained)} - {DROPPED}) for name in changed}


def _to_train(spec: RunFile, block: str, trained: Collection[str]) -> list[str]:
    """The codec in which a block is wanted besides, by those who train it."""
    return [spec.compression.trained] if block in trained else []
