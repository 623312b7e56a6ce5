"""Makes what a run may end with instead of its last version; and scores the average, which nobody has scored."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from safetensors import safe_open
from torch import Tensor

from fedcybgd.coordinator.domain.candidates import RunCandidate, chosen
from fedcybgd.coordinator.domain.jobs.candidates import CalibrateResult, CandidateBlock, ConcludePayload, ConcludeResult
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult
from fedcybgd.coordinator.engine.changes import open_admitted, opened_change
from fedcybgd.coordinator.engine.evaluate import NotFinite, evaluate
from fedcybgd.coordinator.engine.head_calibration import calibrate, calibrated
from fedcybgd.coordinator.engine.outer import old_velocity
from fedcybgd.coordinator.engine.shards import as_bytes, shard_header
from fedcybgd.coordinator.storage import BlobDamaged, EngineStore
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.files.safetensors_header import Header, copy_tensor, pack_header
from fedcybgd.shared.tensors.delta_file import DeltaFile, row_slices, some_rows


def conclude(store: EngineStore, payload: ConcludePayload) -> ConcludeResult:
    """Deterministic to the bit. Raises `BlobMissing` or `BlobDamaged` for what it would take and is not there."""
    made = [average(store, block) for block in payload.average.blocks]
    best = [average(store, block) for block in payload.best.blocks]
    score = None
    if payload.scoring is not None and made:
        try:
            score = evaluate(store, _with(payload.scoring, made))
        except NotFinite:
            score = None
    return ConcludeResult(average=made, best=best, score=score, calibrated=_calibrated(store, payload, made, best, score))


def _with(scoring: EvaluatePayload, made: Sequence[ShardRef]) -> EvaluatePayload:
    """The same of the model with these blocks."""
    instead = {ref.block: ref for ref in made}
    return scoring.model_copy(update={"blocks": [instead.get(ref.block, ref) for ref in scoring.blocks]})


def _calibrated(
    store: EngineStore, payload: ConcludePayload, made: Sequence[ShardRef], best: Sequence[ShardRef], score: EvaluateResult | None
) -> CalibrateResult | None:
    """Of the candidate that the scores choose."""
    if payload.scoring is None or not payload.calibrate:
        return None
    blocks: dict[RunCandidate, Sequence[ShardRef]] = {RunCandidate.LAST: []}
    blocks |= {name: refs for name, refs in ((RunCandidate.AVERAGE, made), (RunCandidate.BEST, best)) if refs}
    scores = {name: payload.scores.get(name) for name in blocks}
    if score is not None:
        scores[RunCandidate.AVERAGE] = Score.model_validate(score, from_attributes=True)
    choice = chosen(scores, payload.keep_average)
    return calibrate(store, _with(payload.scoring, blocks[choice]), choice)


def average(store: EngineStore, block: CandidateBlock) -> ShardRef:
    """The mean of versions of a block, as the one that follows the last of them: float32 but for what nothing has changed.

    The versions are made again some rows at a time, and added up as they are: none is held, or stored.
    """
    header = shard_header(store, block.base.digest)
    with open_admitted(store, block.changes, header) as deltas:
        return _average(store, block, header, deltas)


def calibrated_again(store: EngineStore, block: CandidateBlock) -> tuple[ShardRef, ShardRef | None]:
    """A version that a run ended with, made anew; and what it was before it was calibrated, where it was."""
    mean = average(store, block)
    return (mean, None) if block.calibration is None else (calibrated(store, mean, block.calibration), mean)


def _average(store: EngineStore, block: CandidateBlock, header: Header, deltas: Mapping[str, DeltaFile]) -> ShardRef:
    changes = [opened_change(store, change, header, deltas) for change in block.changes]
    changed = frozenset[str]().union(*(change.names for change in changes))
    head = pack_header([(n, "F32" if n in changed else tensor.dtype, tensor.shape) for n, tensor in header.tensors.items()])
    last = hashlib.sha256(head)  # what is averaged must be what the history names: the last version says whether it is
    with store.localised(block.base.digest) as path, old_velocity(store, *block.changes[:1]) as before, store.writer() as writer:
        writer.write(head)
        for name, tensor in header.tensors.items():
            if name not in changed:
                with path.open("rb") as plain:
                    for chunk in copy_tensor(plain, header, name):
                        writer.write(chunk)
                        last.update(chunk)
                continue
            for rows in row_slices(tensor.shape):
                with safe_open(path, framework="pt") as file:
                    value = some_rows(file, name, rows).to(torch.float32)
                mean, velocity = RunningMean(value, block.rounds[0]), before.some(name, rows)
                for change, rounds in zip(changes, block.rounds[1:], strict=True):
                    if name in change.names:
                        value, velocity = change.changed(value, name, tensor.shape, rows, velocity)
                    else:
                        velocity = None
                    mean.add(value, rounds)
                writer.write(as_bytes(mean.value))
                last.update(as_bytes(value))
        if last.hexdigest() != block.last.digest:
            called = f"block {block.last.block}, version {block.last.version}"
            raise BlobDamaged(f"{called}: its deltas make something else now; `fedcoord verify` says more", digest=block.last.digest)
    return ShardRef(block=block.last.block, version=block.last.version + 1, codec=EXACT, digest=writer.digest, size=writer.size)


class RunningMean:
    """mean + (value - mean) · weight / sum of the weights so far, in float32: each operation is rounded once, and none is fused."""

    def __init__(self, value: Tensor, weight: int) -> None:
        self.value = value
        self._total = weight

    def add(self, value: Tensor, weight: int) -> None:
        """Nothing of a value without a weight is in it."""
        if not weight:
            return
        self._total += weight
        self.value = value if self._total == weight else self.value + (value - self.value) * (weight / self._total)
