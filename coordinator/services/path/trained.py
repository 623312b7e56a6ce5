"""What an assignment trains, and what its delta may therefore hold."""

import math
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db import queries
from fedcybgd.coordinator.db.models import Assignment, Block, Run
from fedcybgd.coordinator.domain.corrections import factor_shapes
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.delta_rows import layout_by_rows
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import pack_header

HEADER_ROOM = 1 << 20
"""Bytes that a delta's safetensors header may take, beyond its tensors, and beyond what their names and shapes need."""
PIECES_A_TENSOR = 4
"""Tensors that a delta may have for one of the model's, each in chunks of its own: codes, scales, offsets, numbers of rows."""


@dataclass(frozen=True)
class DeltaForm:
    """What a delta of an assignment must be."""

    tensors: dict[str, tuple[int, ...]]
    """name → shape"""
    codec: DeltaCodec
    limit: int
    """the most bytes that it may have: float32 tensors and a header"""

    @property
    def header_limit(self) -> int:
        """The most bytes that its header may have: to parse one takes long."""
        rows = {name: shape[0] for name, shape in self.tensors.items() if len(shape) == 2 and shape[0]}
        layout = layout_by_rows(self.tensors, self.codec, rows)
        return len(pack_header((name, dtype, shape) for name, (dtype, shape) in layout.items())) + HEADER_ROOM

    @property
    def most_chunks(self) -> int:
        """Of a packed one: whole ones, and one at the end of each tensor and of the header."""
        return self.limit // lossless.CHUNK + PIECES_A_TENSOR * len(self.tensors) + 2


def trained_refs(session: Session, assignment: Assignment) -> list[ShardRef]:
    """The blocks that an assignment trains, exact, whatever they were sent as: they are as they were then, for it has not been applied."""
    sent = [ref for ref in assignment.manifest.blocks if ref.block in assignment.train.trained]
    rounded = [ref.block for ref in sent if ref.codec != EXACT]
    exact = {ref.block: ref for ref in queries.exact_shards(session, assignment.run_id, rounded)} if rounded else {}
    return [exact[ref.block].model_copy(update={"version": ref.version}) if ref.block in exact else ref for ref in sent]


def corrected_refs(session: Session, assignment: Assignment) -> list[ShardRef]:
    """The blocks that an assignment corrects, exact, as they are now: as they were when it was handed out, for it has not been applied."""
    if assignment.train.corrections is None:
        return []
    return queries.exact_shards(session, assignment.run_id, corrected_matrices(session, assignment))


def changed_refs(session: Session, assignment: Assignment) -> list[tuple[ShardRef, float | None]]:
    """The blocks that the delta of an assignment changes; those that it corrects, with how often a correction counts."""
    corrections = assignment.train.corrections
    corrected = [(ref, corrections.scale) for ref in corrected_refs(session, assignment)] if corrections is not None else []
    return [*((ref, None) for ref in trained_refs(session, assignment)), *corrected]


def corrected_matrices(session: Session, assignment: Assignment) -> dict[str, dict[str, tuple[int, ...]]]:
    """Block → the matrices of it that an assignment corrects, with their shapes; only blocks that have some."""
    corrections = assignment.train.corrections
    if corrections is None:
        return {}
    wanted = set(corrections.matrices)
    rows = session.execute(select(Block.name, Block.tensors).where(Block.run_id == assignment.run_id).order_by(Block.position))
    found = {name: {tensor.name: tuple(tensor.shape) for tensor in tensors if tensor.name in wanted} for name, tensors in rows}
    return {name: shapes for name, shapes in found.items() if shapes}


def _factors(session: Session, assignment: Assignment) -> dict[str, tuple[int, ...]]:
    corrections = assignment.train.corrections
    if corrections is None:
        return {}
    by_block = corrected_matrices(session, assignment).values()
    return factor_shapes(corrections, {name: shape for shapes in by_block for name, shape in shapes.items()})


def form_of(session: Session, assignment: Assignment) -> DeltaForm:
    mine = (Block.run_id == assignment.run_id) & Block.name.in_(assignment.train.trained)
    tensors = {tensor.name: tuple(tensor.shape) for block in session.scalars(select(Block.tensors).where(mine)) for tensor in block}
    tensors |= _factors(session, assignment)
    return DeltaForm(tensors, session.get_one(Run, assignment.run_id).spec.delta.codec, limit_of(session, assignment))


def limit_of(session: Session, assignment: Assignment) -> int:
    """The most bytes that a delta of an assignment may have."""
    mine = (Block.run_id == assignment.run_id) & Block.name.in_(assignment.train.trained)
    factors = sum(math.prod(shape) for shape in _factors(session, assignment).values())
    return 4 * (sum(session.scalars(select(Block.num_parameters).where(mine))) + factors) + HEADER_ROOM
