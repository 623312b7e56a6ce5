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


def class_means(visit: Visit) -> dict[str, Tensor]:
    """The matrix of the head (labels, hidden) by its name, with the rows set that are all zero and of whose labels the visit has rows.

    Such a row points where the mean of these does of what enters the matrix (the classifier of Legate et al., *Guiding the last layer in federated
    learning with pre-trained models*, NeurIPS 2023). All are as long as makes the logit of a mean on itself `LONGEST_MEAN`, at the most so long
    themselves. The head is left so, open. Nothing where the run does not ask, no row is zero, or the owner does not let labels be told.
    Raises `Stopped`.
    """
    settings, labels = visit.settings, visit.settings.num_labels
    asked = settings.head_start == "class_means" and HEAD in visit.blocks and visit.request.data.tell_labels
    if not asked or labels is None:
        return {}
    tensors = visit.emulator.open(visit.shard(HEAD))
    name = of_labels({name: tensor.shape for name, tensor in tensors.items()}, labels)
    if name is None:
        return {}
    matrix = tensors[name]
    rows = sorted({row for batch in visit.order for row in batch}, key=lambda row: (visit.partition.features.length(row), row))
    counts = torch.tensor(visit.partition.label_counts(labels, rows), device=matrix.device)
    unset = (matrix == 0).all(1) & (counts > 0)
    if not unset.any():
        return {}
    sums = torch.zeros_like(matrix)
    for batch in (visit.batch(indices) for indices in chunks(rows, settings.batch_size)):
        if visit.should_stop():
            raise Stopped
        with visit.compute.autocast():
            logits = forward_logits(visit.model, batch)
        # A logit is linear in its row of the matrix: its gradient there is what entered the matrix.
        sums += torch.autograd.grad(logits.gather(1, batch.labels[:, None]).sum(), matrix)[0]
    means = sums[counts > 0] / counts[counts > 0, None]
    length = LONGEST_MEAN / max(1.0, float(means.norm(dim=1).mean()))
    with torch.no_grad():
        matrix[unset] = length * functional.normalize(sums[unset], dim=1)
    return {name: matrix.detach().clone()}


def begin_at(means: Mapping[str, Tensor], opened: Opened) -> None:
    """What was found by `class_means`, in the open head."""
    with torch.no_grad():
        for name, values in means.items():
            opened[HEAD][name].copy_(values)


def own_labels_alone(visit: Visit, opened: Opened) -> list[RemovableHandle]:
    """Where labels without rows stay in the loss, let them move what is below the head, and not their rows: others have taught these."""
    labels = visit.settings.num_labels
    if visit.settings.label_skew != "smoothed" or labels is None or HEAD not in opened:
        return []
    head = opened[HEAD]
    name = of_labels({name: tensor.shape for name, tensor in head.items()}, labels)
    counts = visit.partition.label_counts(labels, range(len(visit.partition.features)))
    own = torch.tensor(counts, device=visit.compute.device) > 0
    if name is None or own.all():
        return []
    tensors = [head[each] for each in (name, f"{name.removesuffix('.weight')}.bias") if each in head]
    return [tensor.register_hook(lambda g: g * own.view(-1, *[1] * (g.dim() - 1))) for tensor in tensors]  # type: ignore[no-untyped-call]
