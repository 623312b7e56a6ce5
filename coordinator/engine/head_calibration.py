"""Calibrates the head of a classifier on held-out rows: bias-corrected temperature scaling (Alexandari, Kundaje, Shrikumar, ICML 2020)."""

import math
from collections.abc import Callable

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from fedcybgd.coordinator.domain.candidates import calibration_helps
from fedcybgd.coordinator.domain.jobs.candidates import CalibrateResult, HeadCalibration
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult
from fedcybgd.coordinator.domain.label_tally import LabelTally
from fedcybgd.coordinator.domain.mean_loss import MeanLoss
from fedcybgd.coordinator.engine.evaluate import HeldOutLogits, held_out_logits, of_labelled
from fedcybgd.coordinator.engine.shards import from_blob, from_tensor, shard_header, write_shard
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.block_names import HEAD, of_labels
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.measured import FLAT, Score
from fedcybgd.shared.files.safetensors_header import Header

PENALTY = 0.01
"""On the sum of the squared shifts, beside the mean loss: a shift that the rows do not ask for is none"""
STEPS = 100
DIGITS = 6
"""After the point, of what is recorded: so that rounding on another machine does not matter"""
MOST = float(FLAT)
"""The scale is at most that and at least its inverse: of logits that are all right there is no highest, of logits that tell nothing no lowest"""
FEWEST = 8
"""Rows of which something can be said: four to fit on, and four to try it on"""


def calibrate(store: EngineStore, payload: EvaluatePayload, candidate: str) -> CalibrateResult | None:
    """The head of this model, calibrated on its rows. Deterministic to the bit.

    None: it has no matrix of labels, or its logits are not finite, or there are too few rows.
    """
    head = next((ref for ref in payload.blocks if ref.block == HEAD), None)
    names = None if head is None else _names(shard_header(store, head.digest), payload.num_labels or 0)
    if head is None or names is None:
        return None
    rows = held_out_logits(store, payload)
    if len(rows.labels) < FEWEST or not rows.logits.isfinite().all():
        return None
    plain, shifted = (cross_fitted(rows.logits, rows.labels, with_shift) for with_shift in (False, True))
    with_shift = names[1] is not None and shift_helps(plain, shifted, rows.labels)
    before = _scored(rows, rows.logits, payload)
    after = _scored(rows, shifted if with_shift else plain, payload)
    scale, shift = fit(rows.logits, rows.labels, with_shift)
    shift = shift or [0.0] * (rows.logits.shape[1] if names[1] is not None else 0)
    calibration = HeadCalibration(weight=names[0], bias=names[1], scale=scale, shift=shift)
    helps = calibration_helps(*(Score.model_validate(found, from_attributes=True) for found in (before, after)))
    made = calibrated(store, head, calibration) if helps else None
    return CalibrateResult(of=candidate, before=before, after=after, calibration=calibration, head=made)


def fit(logits: Tensor, labels: Tensor, with_shift: bool = True) -> tuple[float, list[float]]:
    """(scale, shift of each label) with which scale · logits + shift have the least cross entropy on these rows; no shift: an empty list.

    The scale is within `MOST`. `logits`: float64, (rows, labels). `labels`: int64, (rows,).
    """
    logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=with_shift)
    optimizer = torch.optim.LBFGS(
        [logarithm, shift] if with_shift else [logarithm], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = functional.cross_entropy(logarithm.exp() * logits + shift, labels) + PENALTY * shift.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    scale = round(min(max(logarithm.exp().item(), 1 / MOST), MOST), DIGITS)
    return scale, [round(one, DIGITS) for one in shift.tolist()] if with_shift else []


def cross_fitted(logits: Tensor, labels: Tensor, with_shift: bool = True) -> Tensor:
    """The logits of every row, calibrated by the other half of the rows: halves are drawn, the same each time.

    Without a look at labels: where each half had its share of every label, one would tell the shifts of the other how often they come.
    """
    found, half = torch.empty_like(logits), halves(len(labels))
    for number in (0, 1):
        scale, shift = fit(logits[half != number], labels[half != number], with_shift)
        mine = half == number
        found[mine] = scale * logits[mine] + (torch.tensor(shift, dtype=torch.float64) if shift else 0.0)
    return found


def shift_helps(plain: Tensor, shifted: Tensor, labels: Tensor) -> bool:
    """Whether labels are shifted, besides the temperature: where cross-fitted the loss is lower with it, and the accuracy not lower.

    A temperature alone changes no answer; a shift that is fitted to chance costs some.
    """
    losses = [functional.cross_entropy(logits, labels) for logits in (plain, shifted)]
    right = [(logits.argmax(-1) == labels).sum() for logits in (plain, shifted)]
    return bool(losses[1] < losses[0] and right[1] >= right[0])


def halves(rows: int) -> Tensor:
    """0 or 1 for each row."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0)) % 2


def calibrated(store: EngineStore, head: ShardRef, how: HeadCalibration) -> ShardRef:
    """The version of a head that follows: float32(scale) · matrix, float32(scale) · bias + float32(shift), and all else as it is."""
    header = shard_header(store, head.digest)
    scale, changed = torch.tensor(how.scale, dtype=torch.float32), dict[str, Callable[[Tensor], Tensor]]()
    changed[how.weight] = lambda tensor: tensor * scale
    if how.bias is not None:
        shift = torch.tensor(how.shift, dtype=torch.float32)
        changed[how.bias] = lambda tensor: tensor * scale + shift
    with store.localised(head.digest) as path, safe_open(path, framework="pt") as file:

        def made(name: str) -> Callable[[], Tensor]:
            return lambda: changed[name](file.get_tensor(name).to(torch.float32))

        digest, size = write_shard(store, [
            from_tensor(name, tensor.shape, torch.float32, made(name)) if name in changed else from_blob(store, head.digest, header, tensor, name)
            for name, tensor in header.tensors.items()
        ])  # fmt: skip
    return ShardRef(block=head.block, version=head.version + 1, codec=EXACT, digest=digest, size=size)


def _names(header: Header, labels: int) -> tuple[str, str | None] | None:
    """Of a head, its matrix with a row for each label, and the bias beside it."""
    name = of_labels({name: tensor.shape for name, tensor in header.tensors.items()}, labels)
    if name is None:
        return None
    bias = f"{name.removesuffix('weight')}bias"
    return name, bias if bias in header.tensors and list(header.tensors[bias].shape) == [labels] else None


def _scored(rows: HeldOutLogits, logits: Tensor, payload: EvaluatePayload) -> EvaluateResult:
    measured, tally = MeanLoss(), LabelTally.empty(payload.num_labels or 0)
    losses = functional.cross_entropy(logits, rows.labels, reduction="none").tolist()
    measured.add(losses, [1] * len(losses))
    tally.add(rows.labels.tolist(), logits.argmax(-1).tolist())
    assert all(map(math.isfinite, losses))
    return of_labelled(len(losses), measured, tally)
