"""A recorder for devices that record nothing, and what every recorder promises."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedcybgd.agent.training.graphs import Recorder, Recording


class Repetition:
    """Work that is done anew, and written to where it was at first."""

    def __init__(self, work: Callable[[], Tensor], parameters: Sequence[nn.Parameter], taken: int) -> None:
        self.output, self.taken, self.unseen = work(), taken, 0
        self._work, self._parameters = work, parameters
        self._gradients = [parameter.grad for parameter in parameters]
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for parameter in self._parameters:
            parameter.grad = None
        self.output.copy_(self._work())
        for parameter, written in zip(self._parameters, self._gradients, strict=True):
            if written is not None and parameter.grad is not None:
                written.copy_(parameter.grad)
            parameter.grad = None


class Repeater:
    """`taken`: bytes that each recording says it works in."""

    def __init__(self, parameters: Sequence[nn.Parameter], taken: int = 0) -> None:
        self.parameters, self.taken = list(parameters), taken
        self.rehearsals = 0
        self.recordings: list[Repetition] = []
        self.closed: list[Recording] = []

    def rehearse(self, work: Callable[[], Tensor]) -> Tensor:
        self.rehearsals += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> Repetition:
        self.recordings.append(Repetition(work, self.parameters, self.taken))
        return self.recordings[-1]

    def close(self, recordings: Sequence[Recording]) -> None:
        self.closed += recordings


class RecorderContract:
    """`make` is given the parameters whose gradients are recorded."""

    device: str

    def make(self, parameters: Sequence[nn.Parameter]) -> Recorder:
        raise NotImplementedError

    def test_a_recording_reads_and_writes_the_tensors_that_it_was_made_with(self) -> None:
        weight = nn.Parameter(torch.tensor([2.0, 3.0], device=self.device))
        x = torch.tensor([1.0, 1.0], device=self.device)

        def work() -> Tensor:
            total = (weight.square() * x).sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total.detach()

        recorder: Any = self.make([weight])
        assert recorder.rehearse(work).item() == 13
        assert weight.grad is not None
        assert weight.grad.tolist() == [4, 6]
        weight.grad = None
        recordings = []
        for scale in (1.0, 10.0):
            recordings.append(recorder.record(work))
            gradient, weight.grad = weight.grad, None
            x.fill_(scale)
            recordings[-1].replay()
            assert (recordings[-1].output.item(), gradient.tolist()) == (13 * scale, [4 * scale, 6 * scale])
            with torch.no_grad():
                weight.mul_(2)
            recordings[-1].replay()
            assert (recordings[-1].output.item(), gradient.tolist()) == (52 * scale, [8 * scale, 12 * scale])
            with torch.no_grad():
                weight.div_(2)
        recorder.close(recordings)
