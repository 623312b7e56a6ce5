"""The loss of one batch; for large vocabularies without ever holding all logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from fedcybgd.agent.training.frozen import QuantizedLinear, multiplied_in, parts, quantized_weight
from fedcybgd.agent.training.overrides import forwards
from fedcybgd.shared.contract.words import LabelSkew, Task
from fedcybgd.shared.models.batches import IGNORED, Batch, forward_logits, num_predictions, plain_forward, summed_loss
from fedcybgd.shared.tensors.quantized import QuantizedTensor

WORTHWHILE = 1 << 23
"""Logits (tokens × vocabulary) from which they are computed in chunks: 32 MB in float32, and the plain way holds them three times."""
CHUNK = 1 << 23
"""Logits that exist at a time."""
SMOOTHED = 0.25
"""Share of the prior that is the same for every label, rows or none, its λ."""
FEDLC_TAU = 1.0
"""Strength of FedLC's calibration, its τ."""
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "logits_scale")


def label_offsets(label_skew: LabelSkew, counts: Sequence[int]) -> Tensor:
    """What is added to the logits of each label before the softmax of the training loss, float32; `counts` are those of one agent's rows.

    With n_c rows of label c, and n in all, of C labels:

    none:              0;
    mask:              0, and no softmax over labels without rows (as FedRS restricts it, Li and Zhan, KDD 2021);
    logit_adjustment:  log(n_c / n), so that logits need not learn how frequent a label is here (Menon et al., ICLR 2021; between agents
                       Legate et al., CoLLAs 2023);
    smoothed:          log((1 - λ) n_c / n + λ / C): the same, but a label without rows is there, and seldom. It is pushed down where it is
                       taken for one of the agent's own, and hardly anywhere else;
    fedlc:             -τ · n_c^(-1/4), a margin that is the wider the fewer rows (Zhang et al., ICML 2022).

    A label without rows has minus infinity in mask, logit_adjustment and fedlc: it has no part in the loss, so this agent unlearns nothing of it.
    """
    rows = torch.tensor(counts, dtype=torch.float64)
    match label_skew:
        case "none":
            return torch.zeros(len(counts))
        case "mask":
            offsets = torch.zeros_like(rows)
        case "logit_adjustment":
            offsets = (rows / rows.sum()).log()
        case "smoothed":
            return ((1 - SMOOTHED) * rows / rows.sum() + SMOOTHED / len(counts)).log().float()
        case "fedlc":
            offsets = -FEDLC_TAU * rows.pow(-0.25)
    return offsets.masked_fill(rows == 0, -torch.inf).float()


class Loss:
    """Computes the summed loss of a batch and the number of predictions; `chunked` is auto, on or off.

    Chunked logits need a language model that returns what its output head gives, unchanged. Whether it does is tried out,
    with two tokens: the head hands on its input for once, and the model must return that very tensor.
    `offsets` (see `label_offsets`) are added to the logits of a classifier, in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        precision: torch.dtype,
        chunked: str = "off",
        probe: Batch | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        self._model = model
        self._task = task
        self._precision = precision
        self._chunked = chunked
        self._offsets = offsets
        self._head = _plain_head(model, probe, precision) if task == "causal-lm" and chunked != "off" and probe is not None else None

    def __call__(self, batch: Batch) -> tuple[Tensor, int]:
        """The sum over the batch (nats, float32), and over how many predictions."""
        wanted = self.wanted(batch)
        return self.total(batch, wanted), num_predictions(batch, self._task) if wanted is None else len(wanted)

    def wanted(self, batch: Batch) -> Tensor | None:
        """Which tokens of the batch predict one, int64, where logits are computed in chunks; else None."""
        if self._head is None or not self._is_worthwhile(batch, self._head):
            return None
        return (batch.labels[:, 1:].reshape(-1) != IGNORED).nonzero().squeeze(1)

    def total(self, batch: Batch, wanted: Tensor | None) -> Tensor:
        """The sum over the batch, of which `wanted` was found. No value of a tensor is looked at."""
        with torch.autocast(batch.device.type, dtype=self._precision, enabled=self._precision != torch.float32):
            if self._head is not None and wanted is not None:
                return self._in_chunks(batch, self._head, wanted)
            logits = forward_logits(self._model, batch)
        return summed_loss(logits if self._offsets is None else logits + self._offsets, batch, self._task)

    def _in_chunks(self, batch: Batch, head: nn.Linear, wanted: Tensor) -> Tensor:
        hidden, _ = _before_head(self._model, head, batch)
        targets = batch.labels[:, 1:].reshape(-1)[wanted]
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])[wanted]
        weight = quantized_weight(head)
        args = (rows, head.weight if weight is None else None, head.bias, weight, targets, multiplied_in(rows))
        total: Tensor = _HeadLoss.apply(*args)  # type: ignore[no-untyped-call]
        return total

    def _is_worthwhile(self, batch: Batch, head: nn.Linear) -> bool:
        return self._chunked == "on" or batch.mask.numel() * head.weight.shape[0] >= WORTHWHILE


def _plain_head(model: nn.Module, probe: Batch, precision: torch.dtype) -> nn.Linear | None:
    """The output head of a language model, if the model does nothing to what the head returns."""
    head: Any = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if type(head) not in (nn.Linear, QuantizedLinear) or head._forward_hooks or head._forward_pre_hooks:
        return None
    if any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in AFTER_HEAD):
        return None
    mask = torch.ones_like(probe.mask[:1, :2])
    small = Batch({name: tensor[:1, :2] for name, tensor in probe.inputs.items()} | {"attention_mask": mask}, mask, probe.labels[:1, :2])
    # As in training: frozen matrices may be in bfloat16 already.
    device = probe.device.type
    with torch.no_grad(), torch.autocast(device, dtype=precision, enabled=precision != torch.float32):
        return head if _before_head(model, head, small)[1] else None


def _before_head(model: nn.Module, head: nn.Linear, batch: Batch) -> tuple[Tensor, bool]:
    """What enters the output head, (rows, tokens, hidden), and whether the model returned it untouched."""
    caught: list[Tensor] = []
    versions: list[int] = []

    def hand_on(hidden: Tensor) -> Tensor:
        caught.append(hidden)
        versions.append(hidden._version)
        return hidden

    with forwards([(head, hand_on)]):
        returned = plain_forward(model, batch)
    untouched = len(caught) == 1 and returned is caught[0] and returned._version == versions[0]
    return returned, untouched and returned.shape[:2] == batch.mask.shape


class _HeadLoss(torch.autograd.Function):
    """Sum of the cross entropies of `hidden` (n, h) through an output head (vocabulary, h) against `targets` (n,).

    The gradient of the logits is softmax minus one-hot: it is known as soon as a chunk of them is, so it is multiplied back in
    the forward pass and nothing is computed twice (as in Liger's fused linear cross entropy, arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, quantized: QuantizedTensor | None, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:  # fmt: skip
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            dense = None if weight is None else weight.detach().to(dtype)
            size = (weight if weight is not None else quantized).shape[0]  # type: ignore[union-attr]
            total = hidden.new_zeros((), dtype=torch.float64 if hidden.device.type != "mps" else torch.float32)
            gradient = torch.empty_like(hidden) if wants_hidden else None
            weight_gradient = torch.zeros_like(weight) if wants_weight else None  # type: ignore[arg-type]
            bias_gradient = torch.zeros_like(bias) if wants_bias else None  # type: ignore[arg-type]
            step = max(1, CHUNK // size)
            for start in range(0, len(hidden), step):
                x = hidden[start : start + step].to(dtype)
                logits = _logits(x, dense, quantized, bias, size)
                target = targets[start : start + step, None]
                chosen = logits.gather(1, target).squeeze(1)
                largest = logits.amax(1, keepdim=True)
                sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
                total += (sums.log() + largest).squeeze(1).sub_(chosen).sum()
                if not any((wants_hidden, wants_weight, wants_bias)):
                    del logits
                    continue
                logits.div_(sums)
                _less_one(logits, target)
                if bias_gradient is not None:
                    bias_gradient += logits.sum(0)
                back = logits.to(dtype)
                if gradient is not None:
                    gradient[start : start + step] = _multiplied_back(back, dense, quantized)
                if weight_gradient is not None:
                    if dtype == weight_gradient.dtype:
                        weight_gradient.addmm_(back.t(), x)
                    else:
                        weight_gradient += back.t() @ x
                del logits, back  # before those of the next chunk are made
        ctx.gradients = (gradient, weight_gradient, bias_gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = tuple(None if g is None else g.mul_(gradients[0]) for g in ctx.gradients)
        ctx.gradients = None  # they were scaled in place: a second backward pass would be wrong, so it fails
        return (*scaled, None, None, None)


def _less_one(logits: Tensor, target: Tensor) -> None:
    """Take one from each row of `logits`, where `target` (rows, 1) says."""
    if logits.is_cuda:
        # In one order, torch's own scattering goes by way of the host, which a CUDA graph cannot.
        logits.add_(torch.arange(logits.shape[1], device=logits.device) == target, alpha=-1)
    else:
        logits.scatter_add_(1, target, logits.new_full(target.shape, -1.0))


def _logits(x: Tensor, dense: Tensor | None, quantized: QuantizedTensor | None, bias: Tensor | None, size: int) -> Tensor:
    bias = None if bias is None else bias.detach().to(x.dtype)
    if dense is not None:
        return functional.linear(x, dense, bias).float()
    assert quantized is not None
    logits = x.new_empty(len(x), size, dtype=torch.float32)
    for start, stop, piece in parts(quantized):
        logits[:, start:stop] = functional.linear(x, piece.dequantize(x.dtype), None if bias is None else bias[start:stop])
    return logits


def _multiplied_back(back: Tensor, dense: Tensor | None, quantized: QuantizedTensor | None) -> Tensor:
    if dense is not None:
        return back @ dense
    assert quantized is not None
    total = back.new_zeros(len(back), quantized.shape[1], dtype=torch.float32)
    for start, stop, piece in parts(quantized):
        total += back[:, start:stop] @ piece.dequantize(back.dtype)
    return total
