"""Has a card repeat the forward and backward pass of batches of one shape as a CUDA graph, with the bits that the pass has without.

A small layer is computed faster than Python starts its kernels. A graph is recorded of them once, and starts them all. It is of one shape of
batch, and looks at no value; so it is tried before it is relied on: its loss and its gradients are compared to those of the plain pass.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.mask_answers import MaskAnswers
from fedcybgd.agent.training.prefix import PrefixCache
from fedcybgd.agent.training.visit import Visit
from fedcybgd.shared.models.batches import Batch, num_predictions

log = logging.getLogger("fedagent.training")
PLAIN = 2
"""Steps of a shape that are plain before one is recorded: of a shape that comes no more nothing would be gained."""
WORTHWHILE = 8
"""Steps of a shape that must be expected to come for it to be recorded, which takes about three."""
AT_A_TIME = 4
"""Graphs that are kept"""
IN_ALL = 8
"""Graphs that are recorded in a visit"""
BESIDE = 256 << 20
"""Bytes that graphs may have taken while a plain step is made; what takes more is let go before."""
Marks = list[int | None]


class Recording(Protocol):
    """Work that a device can do again by itself."""

    output: Tensor
    """what the work returned, written anew each time"""
    taken: int
    """bytes that it works in"""
    unseen: int
    """those of them that are of no tensor"""

    def replay(self) -> None:
        """Do the work again: reads and writes the tensors that were there when it was recorded."""


class Recorder(Protocol):
    """Records work on a device."""

    def rehearse(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work under the restrictions of recording, without recording. Raises what it raises, and where it looks at a value."""

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Record the work. Raises where that is not possible, and leaves the device as it was."""

    def close(self, recordings: Sequence[Recording]) -> None:
        """Let go of these, and of what recording needed."""


class OtherBits(Exception):
    """The graph computes something else than the plain pass."""


@dataclass(frozen=True)
class _Step:
    rows: list[int]
    batch: Batch
    """on the host"""
    wanted: Tensor | None
    count: int

    @cached_property
    def shape(self) -> Hashable:
        """What decides which kernels its pass starts."""
        tensors = {**self.batch.inputs, "mask": self.batch.mask, "labels": self.batch.labels}
        read = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items())
        return read, bool(self.batch.mask.all()), None if self.wanted is None else len(self.wanted)


@dataclass(frozen=True)
class _Graph:
    inputs: Mapping[str, Tensor]
    gradients: list[Tensor | None]
    recording: Recording


class Graphs:
    """Makes the forward and backward passes of one visit, plainly or as graphs, as it pays."""

    def __init__(
        self, visit: Visit, parameters: Sequence[nn.Parameter], loss_of: Loss, prefix: PrefixCache | None, recorder: Recorder
    ) -> None:
        self._visit, self._loss_of, self._prefix, self._recorder = visit, loss_of, prefix, recorder
        self._parameters = list(parameters)
        self._task = visit.settings.task
        self._seen: Counter[Hashable] = Counter()
        self._kept: dict[Hashable, _Graph] = {}
        self._recorded = 0
        self._recorder_used, self._over = False, False

    @property
    def kept(self) -> int:
        return len(self._kept)

    def loss(self, rows: list[int], batch: Batch) -> Tensor:
        """The loss of a batch, which is on the host; its gradients are in the parameters. The loss may not be finite."""
        wanted = self._loss_of.wanted(batch)
        count = num_predictions(batch, self._task) if wanted is None else len(wanted)
        step = _Step(rows, batch, wanted, max(count, 1))
        self._seen[step.shape] += 1
        if (graph := self._kept.get(step.shape)) is not None:
            for name, tensor in self._inputs(step).items():
                graph.inputs[name].copy_(tensor)
            return self._again(graph) / step.count
        if sum(each.recording.taken for each in self._kept.values()) > BESIDE:
            self.let_go()
        if self._pays(step.shape):
            try:
                with torch.random.fork_rng(self._devices(), device_type="cuda"):  # a layer that draws is drawn for once
                    graph = self._record(step)
            except Exception as error:  # whatever a model, torch or a driver may raise
                self._give_up(error)
            else:
                self._kept[step.shape] = graph
                self._tell_memory()
                return self._again(graph) / step.count
        return self._plainly(step)

    def let_go(self) -> None:
        """Of all graphs, and of what they work in."""
        for parameter in self._parameters:
            parameter.grad = None
        recordings = [graph.recording for graph in self._kept.values()]
        self._kept = {}
        if self._recorder_used:
            self._recorder.close(recordings)
            self._tell_memory()

    def _devices(self) -> list[int]:
        return [torch.cuda.current_device()] if self._visit.compute.device == "cuda" else []

    def _inputs(self, step: _Step) -> dict[str, Tensor]:
        """All that a pass reads and that is another in every step, by a name of its own."""
        batch = step.batch
        return {
            **{f"input {name}": tensor for name, tensor in batch.inputs.items()}, "mask": batch.mask, "labels": batch.labels,
            **({} if step.wanted is None else {"wanted": step.wanted}),
            **({} if self._prefix is None else {"states": self._prefix.states(step.rows, batch.mask)}),
            # What a mean over `count` gives back to the sum, by the very division that autograd does.
            "share": torch.ones((), device=self._visit.compute.device) / step.count,
        }  # fmt: skip

    def _pays(self, shape: Hashable) -> bool:
        seen, done = self._seen[shape], self._seen.total()
        expected = seen * (len(self._visit.order) - done) // done
        room = len(self._kept) < AT_A_TIME and self._recorded < IN_ALL
        return not self._over and room and seen > PLAIN and expected >= WORTHWHILE

    def _plainly(self, step: _Step) -> Tensor:
        try:
            return self._plain(step)
        except torch.OutOfMemoryError:
            if not self._kept:
                raise
        self._give_up("a step beside them found the card full")
        return self._plain(step)

    def _plain(self, step: _Step) -> Tensor:
        batch = step.batch.to(self._visit.compute.device)
        if self._prefix is not None:
            self._prefix.use(step.rows, batch.mask)
        loss = self._loss_of.total(batch, self._loss_of.wanted(batch)) / step.count
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()  # what is not detached would keep alive what belongs to the stream that it was made on

    def _record(self, step: _Step) -> _Graph:
        """A graph that has given the bits of the plain pass over this batch. Leaves no gradients."""
        answers = MaskAnswers()
        with answers.noted():
            marks = self._marks(self._plain(step))
        inputs = {name: tensor.to(self._visit.compute.device, copy=True) for name, tensor in self._inputs(step).items()}
        batch = Batch({name: inputs[f"input {name}"] for name in step.batch.inputs}, inputs["mask"], inputs["labels"])

        def work() -> Tensor:
            if self._prefix is not None:
                self._prefix.hand_on(inputs["states"])
            total = self._loss_of.total(batch, inputs.get("wanted"))
            total.backward(inputs["share"])  # type: ignore[no-untyped-call]
            return total.detach()

        self._recorder_used = True
        with answers.said():
            self._compare(marks, self._recorder.rehearse(work) / step.count)
        self._recorded += 1
        with answers.said():
            recording = self._recorder.record(work)
        graph = _Graph(inputs, [parameter.grad for parameter in self._parameters], recording)
        try:
            self._compare(marks, self._again(graph) / step.count)
        except BaseException:
            self._recorder.close([recording])
            raise
        return graph

    def _again(self, graph: _Graph) -> Tensor:
        """The sum over a batch."""
        graph.recording.replay()
        for parameter, gradient in zip(self._parameters, graph.gradients, strict=True):
            parameter.grad = gradient
        return graph.recording.output

    def _marks(self, loss: Tensor) -> Marks:
        """What tells a loss and its gradients from others, which are let go."""
        found: list[Tensor | None] = [loss.view(torch.int32).long()]
        for parameter in self._parameters:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                found.append(None)
                continue
            found += [gradient.view(torch.int32).sum(dtype=torch.int64), gradient.norm().view(torch.int32).long()]
        values = iter(torch.stack([each for each in found if each is not None]).tolist())
        return [None if each is None else next(values) for each in found]

    def _compare(self, marks: Marks, loss: Tensor) -> None:
        if self._marks(loss) != marks:
            raise OtherBits("the loss or its gradients come out otherwise")

    def _give_up(self, why: Exception | str) -> None:
        """Go on without; said once a visit, and where it is the model's way, once an emulator."""
        self._over = True
        for parameter in self._parameters:
            parameter.grad = None
        if isinstance(why, Exception):
            if not isinstance(why, torch.OutOfMemoryError):
                self._visit.emulator.without_graphs.add(self._visit.settings.trained)
            said, *_ = str(why).strip().splitlines() or [""]
            why = f"{type(why).__name__}: {said}"
        log.warning("no CUDA graphs from here on in visits of %s: %s", ", ".join(self._visit.blocks), why)
        self.let_go()

    def _tell_memory(self) -> None:
        self._visit.memory.take(sum(graph.recording.unseen for graph in self._kept.values()))


def graphs_of(visit: Visit, setting: str, parameters: Sequence[nn.Parameter], loss_of: Loss, prefix: PrefixCache | None) -> Graphs | None:
    """Those of a visit; None where there can be none, or none would pay.

    Without clipping the optimizer looks at every gradient within the backward pass, and rows of a table are looked for among those that are there.
    """
    possible = visit.compute.device == "cuda" and visit.settings.max_grad_norm is not None and not visit.emulator.rows
    tried = visit.settings.trained in visit.emulator.without_graphs
    if setting == "off" or not possible or tried or len(visit.order) < PLAIN + 1 + WORTHWHILE:
        return None
    from fedcybgd.agent.training.cuda_graphs import CudaRecorder

    return Graphs(visit, parameters, loss_of, prefix, CudaRecorder())
