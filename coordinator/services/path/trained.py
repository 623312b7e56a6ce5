"""What an assignment trains, and what its delta may therefore hold."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.models import Assignment, Block, Run
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.shared.contract import words
from fedcybgd.shared.contract.manifests import ShardRef


def trained_refs(assignment: Assignment) -> list[ShardRef]:
    """The blocks that an assignment trains, as they were sent."""
    return [ref for ref in assignment.manifest.blocks if ref.block in assignment.train.trained]


HEADER_ROOM = 1 << 20
"""Bytes that a delta's safetensors header may take, beyond its tensors."""


def expected_tensors(session: Session, assignment: Assignment) -> dict[str, tuple[int, ...]]:
    """Name → shape of what a delta of this assignment must hold."""
    names = [ref.block for ref in trained_refs(assignment)]
    blocks = session.scalars(select(Block).where(Block.run_id == assignment.run_id, Block.name.in_(names)))
    return {tensor.name: tuple(tensor.shape) for block in blocks for tensor in block.tensors}


def delta_codec(session: Session, assignment: Assignment) -> words.DeltaCodec:
    """How a delta of this assignment must travel."""
    return RunFile.model_validate(session.get_one(Run, assignment.run_id).spec).delta.codec


def max_delta_bytes(session: Session, assignment: Assignment) -> int:
    """The most bytes that a delta may have: float32 tensors and a header."""
    names = [ref.block for ref in trained_refs(assignment)]
    sizes = session.scalars(select(Block.num_parameters).where(Block.run_id == assignment.run_id, Block.name.in_(names)))
    return 4 * sum(sizes) + HEADER_ROOM
