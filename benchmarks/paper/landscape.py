"""The held-out loss of a model in memory, and its gradients: of a run, or anywhere between a base and what visits made of it."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reference import Reference
from fedcybgd.coordinator.domain.jobs.measurements import Calibration, HeldOutRef
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.models.assembly import Assembled, read_shard, skeleton
from fedcybgd.shared.models.batches import Batch, forward_logits, loss_sum


class Judge:
    """A model in memory that takes on versions of blocks, and its loss on held-out rows: as an evaluation has it, but nothing is read twice."""

    def __init__(self, run: Reference, held_out: Path, rows: int) -> None:
        """The first `rows` rows, or windows of text."""
        task = run.spec.task
        digest, _ = write_blob(run.store, held_out.read_bytes())
        calibration = Calibration(
            task=task.kind, num_labels=task.num_labels, label_names=task.label_names, max_length=task.max_length, files=run.file_refs,
            blocks=run.blocks, held_out=HeldOutRef(digest=digest, name=held_out.name, columns={}), rows=rows,
        )  # fmt: skip
        self._task = task.kind
        self._batches = list(CalibrationRows(run.store, calibration).batches())
        self.assembled = Assembled(skeleton(json.loads(run.files["config.json"].read_text()), task.kind))
        self._held: dict[str, str] = {}

    def loss_of(self, run: Reference) -> float:
        """Nats a prediction, of a run's model as it is now."""
        for ref in run.blocks:
            if self._held.get(ref.block) != ref.digest:
                self.assembled.put(tensors_of(run, ref))
                self._held[ref.block] = ref.digest
        return self.loss()

    def loss(self) -> float:
        with torch.inference_mode():
            found = [self._sum(batch) for batch in self._batches]
        return sum(total.item() for total, _ in found) / sum(count for _, count in found)

    def backward(self) -> None:
        """Add the gradients of the summed loss to those parameters that want one."""
        for batch in self._batches:
            self._sum(batch)[0].backward()  # type: ignore[no-untyped-call]

    def _sum(self, batch: Batch) -> tuple[Tensor, int]:
        return loss_sum(forward_logits(self.assembled.model, batch), batch, self._task)


class Landscape:
    """`base` and `visited` are versions of all blocks; blocks that are the same in both did not move. Computed in float32."""

    def __init__(self, judge: Judge, run: Reference, base: Sequence[ShardRef], visited: Sequence[ShardRef]) -> None:
        self._judge = judge
        self._base = {ref.block: tensors_of(run, ref) for ref in base}
        self._steps = {
            ref.block: {name: tensor - self._base[ref.block][name] for name, tensor in tensors_of(run, ref).items()}
            for ref, before in zip(visited, base, strict=True)
            if ref.digest != before.digest
        }
        for tensors in self._base.values():
            judge.assembled.put(tensors)

    @property
    def moved(self) -> list[str]:
        """The blocks that visits changed, in the order of the model."""
        return list(self._steps)

    def loss(self, taken: Collection[str], damping: float = 1.0) -> float:
        """Nats a prediction, where the steps of these blocks are taken, times `damping`."""
        self._go(taken, damping)
        return self._judge.loss()

    def gradients(self, taken: Collection[str]) -> dict[str, Tensor]:
        """block → the gradient of the held-out loss, flat, where the steps of the blocks `taken` are taken."""
        self._go(taken, 1.0)
        model = self._judge.assembled
        parameters = {b: [model.parameter(n) for n in names if model.is_parameter(n)] for b, names in self._steps.items()}
        for of_block in parameters.values():
            for parameter in of_block:
                parameter.requires_grad_(True)
        self._judge.backward()
        found = {b: torch.cat([p.grad.flatten() for p in of_block if p.grad is not None]) for b, of_block in parameters.items()}
        self._go((), 1.0)  # frozen again
        return found

    def _go(self, taken: Collection[str], damping: float) -> None:
        for block, steps in self._steps.items():
            factor = damping if block in taken else 0.0
            self._judge.assembled.put({name: tensor + factor * steps[name] for name, tensor in self._base[block].items()})


def tensors_of(run: Reference, ref: ShardRef) -> dict[str, Tensor]:
    found = read_shard(run.store.path(ref.digest))
    return {name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
