"""The rows of a classifier's head, by the labels of an agent's own rows: where they begin, and which of them a visit moves."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fedcybgd.agent.training.errors import Stopped
from fedcybgd.agent.training.visit import Opened, Visit
from fedcybgd.shared.contract.block_names import HEAD, LONGEST_MEAN, of_labels
from fedcybgd.shared.models.batches import chunks, forward_logits

FEWEST = 2
"""Rows of a mean that is sent where the owner does not let labels be told: the mean of one row would be that row's features."""


def class_means(visit: Visit) -> dict[str, Tensor]:
    """The matrix of the head (labels, hidden) by its name, with the rows set that are all zero and of whose labels the visit has rows.

    Such a row points where the mean of these does of what enters the matrix (the classifier of Legate et al., *Guiding the last layer in federated
    learning with pre-trained models*, NeurIPS 2023). All are as long as makes the logit of a mean on itself `LONGEST_MEAN`, at the most so long
    themselves. Where the owner does not let labels be told, no mean is of one row: such a label begins at the mean of all rows of the visit.
    The head is left so, open. Nothing where the run does not ask, or no row is zero. Raises `Stopped`.
    """
    settings, labels = visit.settings, visit.settings.num_labels
    if settings.head_start != "class_means" or HEAD not in visit.blocks or labels is None:
        return {}
    tensors = visit.emulator.open(visit.shard(HEAD))
    name = of_labels({name: tensor.shape for name, tensor in tensors.items()}, labels)
    if name is None:
        return {}
    matrix = tensors[name]
    rows = sorted({row for batch in visit.order for row in batch}, key=lambda row: (visit.partition.features.length(row), row))
    counts = torch.tensor(visit.partition.label_counts(labels, rows), device=matrix.device)
    unset, tells = (matrix == 0).all(1) & (counts > 0), visit.request.data.tell_labels
    if not unset.any() or (not tells and len(rows) < FEWEST):
        return {}
    sums = _sums(visit, rows, matrix)
    single = torch.zeros_like(unset) if tells else (counts > 0) & (counts < FEWEST)
    sums[single] = sums.sum(0)
    known = counts.masked_fill(single, len(rows))
    means = sums[known > 0] / known[known > 0, None]
    length = LONGEST_MEAN / max(1.0, float(means.norm(dim=1).mean()))
    with torch.no_grad():
        matrix[unset] = length * functional.normalize(sums[unset], dim=1)
    return {name: matrix.detach().clone()}


def _sums(visit: Visit, rows: list[int], matrix: Tensor) -> Tensor:
    """Of each label the sum, over the rows that have it, of what enters the matrix of the open head."""
    sums = torch.zeros_like(matrix)
    for batch in (visit.batch(indices) for indices in chunks(rows, visit.settings.batch_size)):
        if visit.should_stop():
            raise Stopped
        with visit.compute.autocast():
            logits = forward_logits(visit.model, batch)
        # A logit is linear in its row of the matrix: its gradient there is what entered the matrix.
        sums += torch.autograd.grad(logits.gather(1, batch.labels[:, None]).sum(), matrix)[0]
    return sums


def begin_at(means: Mapping[str, Tensor], opened: Opened) -> None:
    """What was found by `class_means`, in the open head."""
    with torch.no_grad():
        for name, values in means.items():
            opened[HEAD][name].copy_(values)


class OthersLabels:
    """The rows of the head whose labels the agent has no rows of: others have taught these, and a visit leaves them as they came.

    Labels without rows may stay in the loss: they move what is below the head, and not their rows. Neither does weight decay.
    With the plain loss (`label_skew: none`) all rows move.
    """

    def __init__(self, visit: Visit, opened: Opened) -> None:
        self._hooks: list[RemovableHandle] = []
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        labels, head = visit.settings.num_labels, opened.get(HEAD, {})
        name = of_labels({name: tensor.shape for name, tensor in head.items()}, labels or 0)
        if visit.settings.label_skew == "none" or labels is None or name is None:
            return
        counts = visit.partition.label_counts(labels, range(len(visit.partition.features)))
        own = torch.tensor(counts, device=visit.compute.device) > 0
        for tensor in (head[each] for each in (name, f"{name.removesuffix('.weight')}.bias") if each in head):
            self._hooks.append(tensor.register_hook(lambda g: g * own.view(-1, *[1] * (g.dim() - 1))))  # type: ignore[no-untyped-call]
            self._kept.append((tensor, ~own, tensor.detach()[~own].clone()))

    def leave(self) -> None:
        """Once the visit has trained: as they came."""
        with torch.no_grad():
            for tensor, others, values in self._kept:
                tensor[others] = values

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
